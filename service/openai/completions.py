"""The body of /v1/completions as a GenerateRequest."""

from typing import Any

from quire.service.openai import constraints, sampling
from quire.service.openai.asked import Asked, read_streaming
from quire.service.openai.fields import UINT32, Fields
from quire.service.openai.names import Names
from quire.service.rpc.field_faults import MAX_LOGPROBS, Faults
from quire.v1 import inference_pb2 as pb

_SEVERAL = "holds several prompts: send a request for each"
_WRONG = "must be a string or a list of token ids"


def read(values: dict[str, Any], request_id: str) -> Asked:
    """Raises Refusal, with all faults of the body."""
    faults = Faults()
    body = Fields(values, faults)
    request = pb.GenerateRequest(request_id=request_id)
    read_prompt(body, request)
    sampling.read(body, request)
    named = constraints.read(body, request)
    most = body.whole("max_tokens")
    if most is not None:
        request.sampling.max_tokens = most
    top = body.whole("logprobs", high=MAX_LOGPROBS)
    if top is not None:
        request.sampling.logprobs = top
    stream, include_usage = read_streaming(body)
    body.only("echo", False)
    body.only("suffix", "")
    body.only("best_of", 1, request.sampling.n or 1, why="must be n: no answer is left out")
    body.end()
    faults.raise_if_any()
    return Asked(request, Names(named), stream, include_usage, top is not None)


def read_prompt(body: Fields, request: pb.GenerateRequest) -> None:
    """One prompt: a text or ids, or a list that holds one of these."""
    prompt = body.value("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            body.fault("prompt", prompt, _SEVERAL)
            return
        prompt = prompt[0]
    if isinstance(prompt, str):
        request.text = prompt
    elif isinstance(prompt, list) and all(_is_id(value) for value in prompt):
        request.token_ids.SetInParent()
        request.token_ids.ids.extend(prompt)
    elif prompt is None:
        body.fault("prompt", None, "is missing")
    else:
        body.fault("prompt", prompt, _WRONG)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= UINT32
