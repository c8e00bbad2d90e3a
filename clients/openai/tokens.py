"""The bodies of /tokenize and /detokenize as messages of the contract."""

from typing import Any

from quire.clients.openai.chat import read_conversation
from quire.clients.openai.faults import Faults
from quire.clients.openai.field_names import Names
from quire.clients.openai.fields import Fields, put_all
from quire.v1 import inference_pb2 as pb


def read_tokenize(values: dict[str, Any]) -> tuple[pb.TokenizeRequest, Names]:
    """But for `model`, which the contract's message has not; and the names of its fields. Raises
    BadBody."""
    faults = Faults()
    body = Fields(values, faults)
    body.text("model")
    request, given = pb.TokenizeRequest(), {}
    if body.has("prompt") and body.has("messages"):
        body.fault("messages", None, "excludes prompt: give one of the two")
    if body.has("messages"):
        given = read_conversation(body, request.chat)
    text = body.text("prompt")
    if text is not None:
        request.text = text
    body.only("add_special_tokens", not request.HasField("chat"))
    body.end()
    faults.raise_if_any()
    return request, Names(given)


def read_detokenize(values: dict[str, Any]) -> tuple[pb.DetokenizeRequest, Names]:
    """The same. Raises BadBody."""
    faults = Faults()
    body = Fields(values, faults)
    body.text("model")
    body.require("tokens")
    request = pb.DetokenizeRequest()
    put_all(request.token_ids, body.wholes("tokens"))
    body.end()
    faults.raise_if_any()
    return request, Names({"token_ids": "tokens"})
