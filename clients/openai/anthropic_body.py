"""The bodies of /v1/messages and of its /count_tokens as messages of the contract."""

from dataclasses import dataclass
from typing import Any

from quire.clients.openai import (
    anthropic_input,
    anthropic_tools,
    constraints,
    sampling,
    template_kwargs,
)
from quire.clients.openai.anthropic_names import MessagesNames, Place
from quire.clients.openai.chat import read_parse_output
from quire.clients.openai.faults import Faults
from quire.clients.openai.fields import Fields, put_all
from quire.clients.openai.parsed_body import ParsedBody
from quire.clients.openai.template_kwargs import Setting
from quire.v1 import inference_pb2 as pb

_NO_TOOLS = "is not supported: no tool runs on this server"
_OF_CHATS = "is of /v1/chat/completions"
_HINTS = (
    ("max_tokens_to_sample", "is not supported: use max_tokens"),
    ("thread", "is not supported, as nothing is stored: send the whole conversation as messages"),
    ("container", _NO_TOOLS),
    ("mcp_servers", _NO_TOOLS),
    ("max_completion_tokens", f"{_OF_CHATS}: use max_tokens"),
    ("reasoning_effort", f"{_OF_CHATS}: use output_config.effort"),
    ("response_format", f"{_OF_CHATS}: use output_config.format"),
    ("parallel_tool_calls", f"{_OF_CHATS}: use tool_choice.disable_parallel_tool_use"),
    ("stream_options", f"{_OF_CHATS}: a stream tells its usage unasked"),
)
_OPENAIS = sorted({*sampling.PASSED_OVER, *sampling.USERS} - {"metadata", "service_tier", "user"})
PASSED_OVER = ("cache_control",)  # beside service_tier
_KEPT = [{"type": "clear_thinking_20251015", "keep": "all"}]  # edits of a context that change none
_USUAL_EFFORT = "high"  # Anthropic's, of which it says that it is as unset
_KINDS = ("adaptive", "disabled", "enabled")
_UNBOUNDED = (
    "is a bound that thoughts do not have here: leave it out, or give at least max_tokens - 1"
)
_SHOWN = "must be summarized: thoughts are answered as they are"


@dataclass(frozen=True, slots=True)
class MessagesBody(ParsedBody):
    """places: of the chat's messages in the body."""

    places: tuple[Place, ...] = ()

    def _names(self) -> MessagesNames:
        return MessagesNames(self.given, places=self.places)


def read(values: dict[str, Any], request_id: str = "") -> MessagesBody:
    """Raises BadBody, with all faults of the body."""
    faults = Faults()
    body = Fields(values, faults)
    request = pb.GenerateRequest(request_id=request_id)
    _check_chats(body)
    user = _user(body)
    given = sampling.read(body, request)
    if user and request.user:
        body.fault("user", request.user, "excludes metadata.user_id: give one of the two")
    elif user:
        request.user, given["user"] = user, "metadata.user_id"
    put_all(request.sampling.stop, body.texts("stop_sequences"))
    most = _max_tokens(body)
    request.sampling.max_tokens = most or 0
    told, places = _read_prompt(body, request, most)
    read_parse_output(body, request)
    stream = body.flag("stream") or False
    body.end((*_HINTS, *constraints.OTHER_NAMES))
    faults.raise_if_any()
    given |= told | {"sampling.stop": "stop_sequences"}
    return MessagesBody((request,), given, stream, places=places)


def read_count(values: dict[str, Any]) -> tuple[pb.TokenizeRequest, MessagesNames]:
    """But for `model`, which the contract's message has not; and the names of its fields. Raises
    BadBody."""
    faults = Faults()
    body = Fields(values, faults)
    body.text("model")
    request = pb.GenerateRequest()
    given, places = _read_prompt(body, request, 0)
    body.end(_HINTS)
    faults.raise_if_any()
    return pb.TokenizeRequest(chat=request.chat), MessagesNames(given, places=places)


def _read_prompt(
    body: Fields, request: pb.GenerateRequest, most: int | None
) -> tuple[dict[str, str], tuple[Place, ...]]:
    """What the prompt is made of, and the format, which is of none. most: tokens. Returns the
    contract's fields under the names given, and the places of messages."""
    chat = request.chat
    places = anthropic_input.read(body, chat)
    anthropic_tools.read(body, chat)
    settings = _thinking(body, most)
    config = body.nested("output_config")
    given = constraints.read_output(body, config, request)
    if config is not None:
        effort = config.text("effort")
        if effort not in (None, _USUAL_EFFORT):
            settings.append(Setting(config.name("effort"), template_kwargs.EFFORT, effort))
        config.end()
    _check_without_effect(body)
    given |= template_kwargs.read(body, chat, settings)
    if chat.continue_final_message:
        given["chat.continue_final_message"] = f"messages[{places[-1].message}]"
    return given, places


def _check_chats(body: Fields) -> None:
    """What chats have, whose fields are read with theirs, and messages have not."""
    body.only("n", 1, why=f"{_OF_CHATS} alone")
    body.only("stop", why=f"{_OF_CHATS}: use stop_sequences")
    for name in ("prompt_logprobs", *_OPENAIS):
        body.only(name, why=f"{_OF_CHATS} alone")


def _check_without_effect(body: Fields) -> None:
    body.only("speed", "standard", why="must be standard: there is one speed")
    body.passed_over(*PASSED_OVER)
    given = body.nested("context_management")
    if given is not None:
        given.only("edits", [], _KEPT, why="is not supported: send fewer messages")
        given.end()


def _user(body: Fields) -> str | None:
    metadata = body.nested("metadata")
    if metadata is None:
        return None
    user = metadata.text("user_id")
    metadata.end()
    return user


def _max_tokens(body: Fields) -> int | None:
    body.require("max_tokens")
    return body.whole("max_tokens")


def _thinking(body: Fields, most: int | None) -> list[Setting]:
    """adaptive: the template's own way."""
    given = body.nested("thinking")
    if given is None:
        return []
    kind = given.value("type")
    if kind not in _KINDS:
        given.fault("type", kind, f"must be one of {', '.join(_KINDS)}")
    elif kind == "enabled":
        budget = given.whole("budget_tokens")
        if budget is not None and most is not None and budget < most - 1:
            given.fault("budget_tokens", budget, _UNBOUNDED)
    given.only("display", "summarized", why=_SHOWN)
    given.end()
    if kind not in ("disabled", "enabled"):
        return []
    return [Setting("thinking", template_kwargs.THINKING, kind == "enabled")]
