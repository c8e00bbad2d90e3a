"""The body of /v1/completions as GenerateRequests, one a prompt."""

from typing import Any

from quire.clients.openai import constraints, sampling
from quire.clients.openai.faults import Faults
from quire.clients.openai.fields import Fields, put_all
from quire.clients.openai.parsed_body import ParsedBody, check_prompt_logprobs, read_streaming
from quire.v1 import inference_pb2 as pb

MAX_PROMPTS = 128  # of one body
_MAX_LOGPROBS = 20
_JUDGED = "prompt_logprobs"
_HINTS = (
    ("messages", "is of /v1/chat/completions: use prompt"),
    ("max_completion_tokens", "is of /v1/chat/completions: use max_tokens"),
    ("top_logprobs", "is of /v1/chat/completions: use logprobs = a number"),
)


def read(values: dict[str, Any], request_id: str = "") -> ParsedBody:
    """Raises BadBody, with all faults of the body."""
    faults = Faults()
    body = Fields(values, faults)
    request = pb.GenerateRequest(request_id=request_id)
    prompts = _prompts(body)
    given = sampling.read(body, request) | constraints.read(body, request)
    most = body.whole("max_tokens")
    if most is not None:
        request.sampling.max_tokens = most
    top = body.whole("logprobs")
    if top is not None:
        request.sampling.logprobs = top
    stream, usage = read_streaming(body)
    prompt_logprobs = check_prompt_logprobs(body, request, stream=stream)
    echo = body.flag("echo") or False
    if echo and most == 0:
        body.fault("max_tokens", 0, "must be at least 1, with echo too: leave out the last token")
    if echo and stream:
        body.fault("echo", True, "goes with stream = false alone")
    elif echo and prompt_logprobs and top not in (None, request.prompt_logprobs):
        told = f"differs from logprobs = {top}, which with echo is of the prompt's tokens too"
        body.fault(_JUDGED, request.prompt_logprobs, told)
    elif echo and top is not None:
        request.prompt_logprobs = min(top, _MAX_LOGPROBS)  # more are refused by their own name
        given["prompt_logprobs"] = "logprobs"
    body.only("suffix", "")
    body.only("best_of", 1, request.sampling.n or 1, why="must be n: no answer is left out")
    body.end((*_HINTS, *constraints.OTHER_NAMES))
    faults.raise_if_any()
    for prompt in prompts:
        prompt.MergeFrom(request)
        if echo and prompt.WhichOneof("prompt") == "token_ids" and not prompt.HasField(_JUDGED):
            prompt.prompt_logprobs = 0  # which come with the tokens' text
    parsed = tuple(prompts)
    return ParsedBody(
        parsed, given, stream, usage, top is not None, echo=echo, prompt_logprobs=prompt_logprobs
    )


def _prompts(body: Fields) -> list[pb.GenerateRequest]:
    """A text or ids, or a list of such."""
    prompt = body.value("prompt")
    if not (isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list)):
        return [_prompt(body, "prompt", prompt)]
    if len(prompt) == 1:
        return [_prompt(body, "prompt", prompt[0])]
    if len(prompt) > MAX_PROMPTS:
        body.fault("prompt", None, f"{len(prompt)} prompts: at most {MAX_PROMPTS} in a request")
        return []
    return [_prompt(body, f"prompt[{i}]", one) for i, one in enumerate(prompt)]


def _prompt(body: Fields, name: str, prompt: object) -> pb.GenerateRequest:
    request = pb.GenerateRequest()
    if prompt is None:
        body.fault(name, None, "is missing")
        return request
    given = body.text_or_ids(name, prompt)
    if isinstance(given, str):
        request.text = given
    else:
        request.token_ids.SetInParent()
        put_all(request.token_ids.ids, given or [])
    return request
