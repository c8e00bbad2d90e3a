"""The bodies of /tokenize and /detokenize as messages of the contract."""

from typing import Any

from quire.clients.openai.chat import read_conversation
from quire.clients.openai.faults import Faults
from quire.clients.openai.fields import Fields, put_all
from quire.v1 import inference_pb2 as pb


def read_tokenize(values: dict[str, Any]) -> pb.TokenizeRequest:
    """But for `model`, which the contract's message has not. Raises BadBody."""
    faults = Faults()
    body = Fields(values, faults)
    body.text("model")
    request = pb.TokenizeRequest()
    if body.has("prompt") and body.has("messages"):
        body.fault("messages", None, "excludes prompt: give one of the two")
    if body.has("messages"):
        read_conversation(body, request.chat)
    text = body.text("prompt")
    if text is not None:
        request.text = text
    body.only("add_special_tokens", not request.HasField("chat"))
    body.end()
    faults.raise_if_any()
    return request


def read_detokenize(values: dict[str, Any]) -> pb.DetokenizeRequest:
    """But for `model`. Raises BadBody."""
    faults = Faults()
    body = Fields(values, faults)
    body.text("model")
    if not body.has("tokens"):
        body.fault("tokens", None, "is missing")
    request = pb.DetokenizeRequest()
    put_all(request.token_ids, body.wholes("tokens"))
    body.end()
    faults.raise_if_any()
    return request
