"""Conversations: messages, tools and tool calls, as dataclasses or as dicts.

Invariant: what is given arrives, in its order, or is refused by name. Dicts may have the shape of
this contract or OpenAI's: `{"name", "arguments"}` or `{"type": "function", "function": {…}}`, and
content as a list of text parts, which are joined.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from quire.clients.arguments import flag, instance, items, kind, parts, show, text
from quire.clients.errors import OptionError
from quire.clients.json_text import write_object
from quire.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the assistant. arguments: a dict, or the text of a JSON object."""

    name: str
    arguments: Mapping[str, Any] | str | None = None
    id: str = ""

    def __post_init__(self) -> None:
        encode_call("ToolCall", self)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. role: system, user, assistant or tool.

    content: text, or OpenAI's list of text parts. tool_call_id: which call a tool's turn answers.
    reasoning_content: what the assistant thought before it said content.
    """

    role: str
    content: str | Sequence[Mapping[str, Any]]
    name: str = ""
    tool_calls: Sequence[ToolCall | Mapping[str, Any]] = ()
    tool_call_id: str = ""
    reasoning_content: str | None = None

    def __post_init__(self) -> None:
        encode_message("Message", self)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. parameters: its JSON schema, a dict or JSON text. Fields
    that are None are not in the prompt. strict: its calls are guaranteed to be valid for the
    schema."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | str | None = None
    strict: bool | None = None

    def __post_init__(self) -> None:
        encode_tool("Tool", self)


Turn: TypeAlias = Message | Mapping[str, Any]
_TURN = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
_CALL = ("id", "name", "arguments")
_TOOL = ("name", "description", "parameters", "strict")
_CHOICES = {
    "auto": pb.TOOL_CHOICE_MODE_AUTO,
    "none": pb.TOOL_CHOICE_MODE_NONE,
    "required": pb.TOOL_CHOICE_MODE_REQUIRED,
}


def encode_message(where: str, turn: Turn) -> pb.ChatMessage:
    """The contract's message. Raises OptionError."""
    given = _parts(where, turn, Message, _TURN)
    if "role" not in given:
        raise OptionError(f"{where}.role: is missing")
    message = pb.ChatMessage()
    for name in ("role", "name", "tool_call_id", "reasoning_content"):
        if name in given:
            setattr(message, name, text(f"{where}.{name}", given[name]))
    calls = items(f"{where}.tool_calls", given.get("tool_calls", ()), "tool calls")
    for j, call in enumerate(calls):
        message.tool_calls.append(encode_call(f"{where}.tool_calls[{j}]", call))
    if "content" in given:
        message.content = _content(f"{where}.content", given["content"])
    elif not calls:
        raise OptionError(f"{where}.content: is missing")
    return message


def _content(where: str, value: Any) -> str:
    if isinstance(value, str):
        return text(where, value)
    if not isinstance(value, Sequence) or isinstance(value, bytes | bytearray | memoryview):
        raise OptionError(f"{where}: text or a list of text parts, not {kind(value)}")
    return "".join(_part(f"{where}[{i}]", part) for i, part in enumerate(value))


def _part(where: str, part: Any) -> str:
    sort = instance(where, part, Mapping, "a text part").get("type")
    if sort != "text":
        raise OptionError(f"{where}.type: {show(sort)}; only parts of type 'text' are supported")
    given = parts(where, part, ("type", "text"))
    return text(f"{where}.text", given.get("text"))


def encode_call(where: str, call: ToolCall | Mapping[str, Any]) -> pb.ToolCall:
    """The contract's message. Raises OptionError."""
    given = _parts(where, call, ToolCall, _CALL)
    message = pb.ToolCall(name=_required(where, given), id=text(f"{where}.id", given.get("id", "")))
    if "arguments" in given:
        message.arguments_json = write_object(f"{where}.arguments", given["arguments"])
    return message


def encode_tool(where: str, tool: Tool | Mapping[str, Any]) -> pb.Tool:
    """The contract's message. Raises OptionError."""
    given = _parts(where, tool, Tool, _TOOL)
    message = pb.Tool(name=_required(where, given))
    if "description" in given:
        message.description = text(f"{where}.description", given["description"])
    if "parameters" in given:
        message.parameters_json = write_object(f"{where}.parameters", given["parameters"])
    if "strict" in given:
        message.strict = flag(f"{where}.strict", given["strict"])
    return message


def encode_tool_choice(where: str, choice: str | Mapping[str, Any]) -> pb.ToolChoice:
    """auto, none, required; or a tool: by its name, or in OpenAI's shape. Raises OptionError."""
    if isinstance(choice, Mapping):
        return pb.ToolChoice(name=_required(where, _parts(where, choice, Tool, ("name",))))
    choice = text(where, choice)
    mode = _CHOICES.get(choice)
    return pb.ToolChoice(name=choice) if mode is None else pb.ToolChoice(mode=mode)


def _required(where: str, given: Mapping[str, Any]) -> str:
    if "name" not in given:
        raise OptionError(f"{where}.name: is missing")
    return text(f"{where}.name", given["name"])


def _parts(where: str, value: Any, kept: type, names: tuple[str, ...]) -> dict[str, Any]:
    """The parts of a dataclass of ours, or of a dict in either shape, without those of None."""
    if isinstance(value, kept):
        return {name: part for name in names if (part := getattr(value, name)) is not None}
    if isinstance(value, Mapping) and "function" in value and "function" not in names:
        return _unwrap(where, value, names)
    return parts(where, value, names)


def _unwrap(where: str, value: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """OpenAI's shape: the parts stand in `function`, and an id beside it."""
    outer = parts(
        where, value, ("type", "function", "id") if "id" in names else ("type", "function")
    )
    if outer.get("type", "function") != "function":
        raise OptionError(f"{where}.type: {show(outer['type'])}; only 'function' is supported")
    inner = parts(f"{where}.function", outer.get("function"), tuple(n for n in names if n != "id"))
    return {**inner, **({"id": outer["id"]} if "id" in outer else {})}
