"""From what a caller has at hand (text, ids, messages, keywords) to a GenerateRequest.

Invariant: nothing is judged here but the types. What a value may be is the server's affair, so
that the limits stand in one place; what protobuf cannot hold is refused before anything is sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypedDict

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from quire.clients.errors import OptionError
from quire.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. role: system, user, assistant or tool."""

    role: str
    content: str
    name: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """Each {"name": …, "arguments": {…}}."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; parameters is its JSON schema."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


Turn: TypeAlias = Message | Mapping[str, Any]
Prompt: TypeAlias = str | Sequence[int] | Sequence[Turn]


class Options(TypedDict, total=False):
    """The keywords of `generate`: SamplingParams' fields, then GenerateRequest's, then Chat's.

    What is left out, or None, is left to the server.
    """

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    n: int | None
    max_tokens: int | None
    min_tokens: int | None
    stop: Sequence[str] | str | None
    include_stop: bool | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    logprobs: int | None
    request_id: str | None
    priority: int | None
    cache_salt: str | None
    model: str | None
    ids_only: bool | None
    resume_token_ids: Sequence[int] | None
    tools: Sequence[Tool | Mapping[str, Any]] | None
    template_args: Mapping[str, Any] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    allow_special_tokens: bool | None


SAMPLING_FIELDS = frozenset(pb.SamplingParams.DESCRIPTOR.fields_by_name)
_CHAT_FIELDS = frozenset(pb.Chat.DESCRIPTOR.fields_by_name) - {"messages"}
_REQUEST_FIELDS = frozenset(pb.GenerateRequest.DESCRIPTOR.fields_by_name) - {
    "text",
    "token_ids",
    "chat",
    "sampling",
}


def build_request(prompt: Prompt, options: Mapping[str, Any]) -> pb.GenerateRequest:
    """The message for a prompt and keywords; OptionError names what it cannot hold."""
    given = {key: value for key, value in options.items() if value is not None}
    unknown = set(given) - SAMPLING_FIELDS - _CHAT_FIELDS - _REQUEST_FIELDS
    if unknown:
        raise OptionError(f"unknown option {sorted(unknown)[0]!r}")
    request = pb.GenerateRequest()
    _set_prompt(request, prompt, {k: v for k, v in given.items() if k in _CHAT_FIELDS})
    for name, value in given.items():
        if name in SAMPLING_FIELDS:
            _set(request.sampling, name, [value] if _lone_stop(name, value) else value)
        elif name in _REQUEST_FIELDS:
            _set(request, name, value)
    return request


def _lone_stop(name: str, value: Any) -> bool:
    return name == "stop" and isinstance(value, str)


def _set(message: Any, name: str, value: Any) -> None:
    try:
        if isinstance(value, Sequence) and not isinstance(value, str):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise OptionError(f"{name}: {value!r} does not fit: {error}") from None


def _set_prompt(request: pb.GenerateRequest, prompt: Prompt, chat: dict[str, Any]) -> None:
    if isinstance(prompt, str):
        _refuse_chat_options(chat)
        request.text = prompt
        return
    if not isinstance(prompt, Sequence):
        raise OptionError(f"prompt: text, token ids or messages, not {type(prompt).__name__}")
    turns = [turn for turn in prompt if isinstance(turn, Message | Mapping)]
    if not turns:
        _refuse_chat_options(chat)
        request.token_ids.SetInParent()
        _set(request.token_ids, "ids", prompt)
        return
    if len(turns) != len(prompt):
        raise OptionError("prompt: messages and token ids in one list")
    request.chat.messages.extend(_turn(i, turn) for i, turn in enumerate(turns))
    _set_chat(request.chat, chat)


def _refuse_chat_options(chat: dict[str, Any]) -> None:
    if chat:
        raise OptionError(f"{sorted(chat)[0]}: goes with messages, not with text or token ids")


def _set_chat(message: pb.Chat, options: dict[str, Any]) -> None:
    for name, value in options.items():
        if name == "tools":
            message.tools.extend(_tool(i, tool) for i, tool in enumerate(value))
        elif name == "template_args":
            message.template_args.CopyFrom(_struct("template_args", value))
        else:
            _set(message, name, value)


def _turn(i: int, turn: Turn) -> pb.ChatMessage:
    values = _fields(f"messages[{i}]", turn, ("role", "content", "name", "tool_calls"))
    message = pb.ChatMessage()
    for name in ("role", "content", "name"):
        if name in values:
            _set(message, name, values[name])
    for j, call in enumerate(values.get("tool_calls", ())):
        where = f"messages[{i}].tool_calls[{j}]"
        parts = _fields(where, call, ("name", "arguments"))
        arguments = _struct(f"{where}.arguments", parts.get("arguments", {}))
        message.tool_calls.append(pb.ToolCall(name=parts.get("name", ""), arguments=arguments))
    return message


def _tool(i: int, tool: Tool | Mapping[str, Any]) -> pb.Tool:
    values = _fields(f"tools[{i}]", tool, ("name", "description", "parameters"))
    parameters = _struct(f"tools[{i}].parameters", values.get("parameters", {}))
    return pb.Tool(
        name=values.get("name", ""),
        description=values.get("description", ""),
        parameters=parameters,
    )


def _fields(where: str, value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The named parts of a dataclass or mapping; a key that would be ignored is refused."""
    if not isinstance(value, Mapping):
        return {name: getattr(value, name) for name in names}
    for key in value:
        if key not in names:
            raise OptionError(f"{where}: unknown key {key!r}; it may hold {', '.join(names)}")
    return dict(value)


def _struct(where: str, value: Mapping[str, Any]) -> Struct:
    try:
        return json_format.ParseDict(dict(value), Struct())
    except (json_format.ParseError, TypeError, ValueError) as error:
        raise OptionError(f"{where}: not JSON: {error}") from None
