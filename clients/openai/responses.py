"""The body of /v1/responses as a GenerateRequest, with what its answer repeats of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire.clients import large_json
from quire.clients.openai import constraints, response_input, sampling, template_kwargs, tools
from quire.clients.openai.chat import read_parse_output
from quire.clients.openai.faults import Faults
from quire.clients.openai.fields import SHORT, Fields
from quire.clients.openai.parsed_body import ParsedBody, read_stream
from quire.clients.openai.response_names import Place, ResponseNames
from quire.v1 import inference_pb2 as pb

_LOGPROBS = "message.output_text.logprobs"
_INCLUDED = (_LOGPROBS, "reasoning.encrypted_content")  # of the second the text itself is there
_UNSTORED = "is not supported, as nothing is stored: send the whole conversation as input"
_HINTS = (
    ("previous_response_id", _UNSTORED),
    ("conversation", _UNSTORED),
    ("prompt", "is not supported, as nothing is stored: send its text as instructions and input"),
    ("max_tool_calls", "is not supported: it bounds hosted tools, and no tool runs on this server"),
    ("context_management", "is not supported: send a shorter input"),
    ("moderation", "is not supported: nothing is moderated here"),
    ("messages", "is of /v1/chat/completions: use input"),
    ("max_tokens", "is of /v1/chat/completions: use max_output_tokens"),
    ("max_completion_tokens", "is of /v1/chat/completions: use max_output_tokens"),
    ("logprobs", f'is of /v1/chat/completions: use include = ["{_LOGPROBS}"]'),
    ("response_format", "is of /v1/chat/completions: use text.format"),
    ("reasoning_effort", "is of /v1/chat/completions: use reasoning.effort"),
    ("verbosity", "is of /v1/chat/completions: use text.verbosity"),
)
PASSED_OVER = ("client_metadata",)  # beside sampling's
_METADATA, _KEY, _VALUE = 16, 64, 512  # entries, and the characters of each
_OF_CHATS = "is of /v1/chat/completions alone"
_SUMMARY = "must be auto: nothing is summarised, and the thoughts are the item's content"
_REPEATED: Mapping[str, Any] = {  # fields of the answer that the body has, and what they are unset
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "temperature": None,
    "tool_choice": "auto",
    "top_logprobs": 0,
    "top_p": None,
    "user": None,
}
_WHOLE = ("max_output_tokens", "top_logprobs")  # of these
_GIVEN = {  # the contract's fields under this API's names
    "sampling.max_tokens": "max_output_tokens",
    "sampling.logprobs": "top_logprobs",
    "logprobs": "include",
}
_FIXED: Mapping[str, Any] = {
    "background": False,
    "max_tool_calls": None,
    "previous_response_id": None,
    "service_tier": "default",
    "store": False,
    "truncation": "disabled",
}
_TOOL: Mapping[str, Any] = {"description": None, "parameters": None, "strict": False}


@dataclass(frozen=True, slots=True)
class ResponsesBody(ParsedBody):
    """repeated: the answer's fields that repeat the body, a JSON object; written on the thread that
    reads the body, since instructions and tools may be large. places: of the items. instructed:
    there are instructions."""

    repeated: bytes = b"{}"
    places: tuple[Place, ...] = ()
    instructed: bool = False

    def _names(self) -> ResponseNames:
        return ResponseNames(self.given, places=self.places, instructed=self.instructed)


def read(values: dict[str, Any], request_id: str = "") -> ResponsesBody:
    """Raises BadBody, with all faults of the body."""
    faults = Faults()
    body = Fields(values, faults)
    request = pb.GenerateRequest(request_id=request_id)
    _check_without_effect(body)
    given = sampling.read(body, request) | constraints.read_text(body, request)
    most = body.whole("max_output_tokens")
    if most is not None:
        request.sampling.max_tokens = most
    _logprobs(body, request)
    places = response_input.read(body, request.chat)
    tools.read_tools(body, request.chat, tools.flat)
    given |= _reasoning(body, request.chat)
    read_parse_output(body, request)
    stream, options = read_stream(body)
    if options is not None:
        options.end()
    body.end((*_HINTS, *constraints.OTHER_NAMES))
    faults.raise_if_any()
    return ResponsesBody(
        (request,),
        given | _GIVEN,
        stream,
        repeated=_repeated(values),
        places=places,
        instructed=bool(values.get("instructions")),
    )


def _check_without_effect(body: Fields) -> None:
    body.only("n", 1, why=_OF_CHATS)
    body.only("prompt_logprobs", why=_OF_CHATS)
    body.only("background", False, why="must be false: nothing is stored that could be asked for")
    body.only("truncation", "disabled", why="must be disabled: send a shorter input")
    body.passed_over(*PASSED_OVER)
    _check_metadata(body)


def _check_metadata(body: Fields) -> None:
    """It is repeated as it is, so that it has OpenAI's bounds."""
    metadata = body.mapping("metadata")
    if len(metadata) > _METADATA:
        body.fault("metadata", None, f"{len(metadata)} entries: at most {_METADATA}")
        return
    for key, value in metadata.items():
        if len(key) > _KEY:
            body.fault("metadata", key, f"must have at most {_KEY} characters")
        elif not isinstance(value, str) or len(value) > _VALUE:
            told = f"must be a string of at most {_VALUE} characters"
            body.fault(f"metadata.{key}", value, told)


def _logprobs(body: Fields, request: pb.GenerateRequest) -> None:
    included, top = body.texts("include"), body.whole("top_logprobs")
    for i, name in enumerate(included):
        if name not in _INCLUDED:
            body.fault(f"include[{i}]", name, f"must be one of {', '.join(_INCLUDED)}")
    if _LOGPROBS in included:
        request.sampling.logprobs = top or 0
    elif top:
        body.fault("top_logprobs", top, f'goes with include = ["{_LOGPROBS}"] alone')


def _reasoning(body: Fields, chat: pb.Chat) -> dict[str, str]:
    given, effort = body.nested("reasoning"), None
    if given is not None:
        effort = given.text("effort", SHORT)
        given.only("summary", "auto", why=_SUMMARY)
        given.only("generate_summary", "auto", why=_SUMMARY)
        given.end()
    return template_kwargs.read(body, chat, template_kwargs.of_effort(effort, "reasoning.effort"))


def _repeated(values: Mapping[str, Any]) -> bytes:
    """values: without faults."""
    given = {field: value for field, value in values.items() if value is not None}
    given |= {field: int(given[field]) for field in _WHOLE if field in given}  # 7.0 is 7
    text, reasoning = given.get("text", {}), given.get("reasoning", {})
    told = {
        **_FIXED,
        **{field: given.get(field, unset) for field, unset in _REPEATED.items()},
        "text": {"format": text.get("format") or {"type": "text"}, "verbosity": "medium"},
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "tools": [{**_TOOL, **tool} for tool in given.get("tools", ())],
    }
    return large_json.dumps(told, separators=(",", ":")).encode()
