"""The body of /v1/chat/completions as a GenerateRequest."""

from typing import Any

from quire.clients.openai import constraints, sampling, template_kwargs, text_parts
from quire.clients.openai.faults import Faults
from quire.clients.openai.fields import Fields
from quire.clients.openai.parsed_body import ParsedBody, check_prompt_logprobs, read_streaming
from quire.clients.openai.tools import read_calls, read_tools
from quire.v1 import inference_pb2 as pb

_ROLES = {  # and what the contract calls them
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_HINTS = (
    ("functions", "is not supported: use tools"),
    ("function_call", "is not supported: use tool_choice"),
    ("prompt", "is of /v1/completions: use messages"),
    ("echo", "is of /v1/completions alone"),
    ("audio", "is not supported: answers are text"),
    ("moderation", "is not supported: nothing is moderated here"),
    ("web_search_options", "is not supported: give a tool that searches"),
)


def read(values: dict[str, Any], request_id: str = "") -> ParsedBody:
    """Raises BadBody, with all faults of the body."""
    faults = Faults()
    body = Fields(values, faults)
    request = pb.GenerateRequest(request_id=request_id)
    given = sampling.read(body, request) | constraints.read(body, request)
    given |= _max_tokens(body, request)
    _logprobs(body, request)
    given |= read_conversation(body, request.chat)
    read_parse_output(body, request)
    stream, usage = read_streaming(body)
    prompt_logprobs = check_prompt_logprobs(body, request, stream=stream)
    body.only("modalities", ["text"])
    body.only("verbosity", "medium", why="must be medium: ask for another in a message")
    body.end((*_HINTS, *constraints.OTHER_NAMES))
    faults.raise_if_any()
    given["sampling.logprobs"] = "top_logprobs"
    logprobs = request.sampling.HasField("logprobs")
    return ParsedBody((request,), given, stream, usage, logprobs, prompt_logprobs=prompt_logprobs)


def read_parse_output(body: Fields, request: pb.GenerateRequest) -> None:
    """Unset: as the model's family has it."""
    parse_output = body.flag("parse_output")
    if parse_output is not None:
        request.parse_output = parse_output


def read_conversation(body: Fields, chat: pb.Chat) -> dict[str, str]:
    """The fields that a prompt is made of. Returns the contract's fields under the names given."""
    body.require("messages")
    for i, value in enumerate(_messages(body)):
        item = body.item(f"messages[{i}]", value)
        if item is not None:
            _read_message(item, chat.messages.add())
    read_tools(body, chat)
    effort = body.text(template_kwargs.EFFORT)
    settings = template_kwargs.of_effort(effort, template_kwargs.EFFORT)
    given = template_kwargs.read(body, chat, settings)
    opened = body.flag("add_generation_prompt")
    if opened is not None:
        chat.add_generation_prompt = opened
    chat.continue_final_message = body.flag("continue_final_message") or False
    if chat.continue_final_message and opened is None:
        chat.add_generation_prompt = False
    return given


def _messages(body: Fields) -> list[Any]:
    given = body.value("messages")
    if given == []:
        body.fault("messages", None, "is empty: at least one message is needed")
    elif given is not None and not isinstance(given, list):
        body.fault("messages", given, "must be a list of messages")
    return given if isinstance(given, list) else []


def _max_tokens(body: Fields, request: pb.GenerateRequest) -> dict[str, str]:
    """The newer name, or the older one, which means the same."""
    newer = body.whole("max_completion_tokens")
    older = body.whole("max_tokens")
    if newer is not None and older is not None and newer != older:
        body.fault("max_tokens", older, f"differs from max_completion_tokens = {newer}")
    most = newer if newer is not None else older
    if most is not None:
        request.sampling.max_tokens = most
    return {} if newer is None else {"sampling.max_tokens": "max_completion_tokens"}


def _logprobs(body: Fields, request: pb.GenerateRequest) -> None:
    wanted = body.flag("logprobs") or False
    top = body.whole("top_logprobs")
    if wanted:
        request.sampling.logprobs = top or 0
    elif top:
        body.fault("top_logprobs", top, "goes with logprobs = true alone")


def _read_role(body: Fields, message: pb.ChatMessage) -> str:
    """The role as the body names it; empty if it has none that there is."""
    missing, role = not body.has("role"), body.text("role")
    if role in _ROLES:
        message.role = _ROLES[role]
        return role
    if missing:
        body.fault("role", None, "is missing")
    elif role is not None:
        body.fault("role", role, f"must be one of {', '.join(_ROLES)}")
    return ""


def _read_message(body: Fields, message: pb.ChatMessage) -> None:
    role = _read_role(body, message)
    calls = read_calls(body, message)
    has_content = body.has("content")
    message.content = text_parts.read(body, "content", ("text",))
    if not has_content and not (role == "assistant" and (calls or _says_else(body))):
        body.fault("content", None, "is missing")
    message.name = body.text("name") or ""
    message.tool_call_id = body.text("tool_call_id") or ""
    thoughts = [body.text(name) for name in ("reasoning_content", "reasoning")]
    told = {thought for thought in thoughts if thought is not None}
    if len(told) > 1:
        body.fault("reasoning", "given", "differs from reasoning_content: give one of the two")
    if told:
        message.reasoning_content = told.pop()
    for name in ("refusal", "audio"):
        body.only(name)
    body.only("function_call", why="is not supported: use tool_calls")
    body.only("annotations", [])
    body.end()


def _says_else(body: Fields) -> bool:
    """Thoughts, or a call of the old form, which is refused by its own name."""
    return any(map(body.has, ("reasoning_content", "reasoning", "function_call")))
