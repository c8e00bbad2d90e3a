"""Builds a GenerateRequest from a caller's arguments: text, ids, messages, keywords.

Invariant: only kinds are checked here. Limits are the server's, so that they are in one place; what
the contract's field cannot hold is refused, by the argument's name, before anything is sent.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, TypedDict

from google.protobuf.descriptor import FieldDescriptor

from quire.clients import arguments, constraints
from quire.clients.errors import OptionError
from quire.clients.json_text import write_object
from quire.clients.messages import (
    Message,
    Tool,
    ToolCall,
    Turn,
    encode_message,
    encode_tool,
    encode_tool_choice,
)
from quire.v1 import inference_pb2 as pb

__all__ = ["Message", "Options", "Prompt", "Tool", "ToolCall", "Turn", "build_request"]

Prompt: TypeAlias = str | Sequence[int] | Sequence[Turn]


class Options(TypedDict, total=False):
    """The keywords of `generate`: SamplingParams' fields, then GenerateRequest's, then Chat's.
    Those left out, or None, are left to the server. priority: the HIGHER runs first."""

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
    include_stop_str_in_output: bool | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    logprobs: int | None
    logit_bias: Mapping[int, float] | None
    allowed_token_ids: Sequence[int] | None
    banned_token_ids: Sequence[int] | None
    constraint: Mapping[str, Any] | None
    request_id: str | None
    priority: int | None
    cache_salt: str | None
    model: str | None
    ids_only: bool | None
    resume_token_ids: Sequence[int] | None
    parse_output: bool | None
    user: str | None
    prompt_logprobs: int | None
    tools: Sequence[Tool | Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    chat_template_kwargs: Mapping[str, Any] | str | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    allow_special_tokens: bool | None
    omit_unshown_reasoning: bool | None


class ChatOptions(TypedDict, total=False):
    """The keywords of `tokenize`, which go with messages."""

    tools: Sequence[Tool | Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    chat_template_kwargs: Mapping[str, Any] | str | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    allow_special_tokens: bool | None
    omit_unshown_reasoning: bool | None


SAMPLING_FIELDS = frozenset(pb.SamplingParams.DESCRIPTOR.fields_by_name)
_CHAT_FIELDS = frozenset(pb.Chat.DESCRIPTOR.fields_by_name) - {"messages"}
_REQUEST_FIELDS = frozenset(pb.GenerateRequest.DESCRIPTOR.fields_by_name) - {
    "text",
    "token_ids",
    "chat",
    "sampling",
}
_OPTIONS = SAMPLING_FIELDS | _CHAT_FIELDS | _REQUEST_FIELDS

_integer = arguments.integer
_BY_TYPE: dict[int, Callable[[str, Any], Any]] = {
    FieldDescriptor.TYPE_BOOL: arguments.flag,
    FieldDescriptor.TYPE_FLOAT: arguments.float32,
    FieldDescriptor.TYPE_INT32: partial(_integer, lowest=-(1 << 31), highest=(1 << 31) - 1),
    FieldDescriptor.TYPE_STRING: arguments.text,
    FieldDescriptor.TYPE_UINT32: partial(_integer, lowest=0, highest=(1 << 32) - 1),
    FieldDescriptor.TYPE_UINT64: partial(_integer, lowest=0, highest=(1 << 64) - 1),
}


def build_request(prompt: Prompt, options: Mapping[str, Any]) -> pb.GenerateRequest:
    """The message for a prompt and keywords; OptionError names what it cannot hold."""
    given = {key: value for key, value in options.items() if value is not None}
    for name in given:
        if name not in _OPTIONS:
            raise OptionError(f"unknown option {arguments.show(name)}")
    request = pb.GenerateRequest()
    _set_prompt(request, prompt, {k: v for k, v in given.items() if k in _CHAT_FIELDS})
    for name, value in given.items():
        if name == "logit_bias":
            constraints.encode_bias(request.sampling, value)
        elif name == "constraint":
            constraints.encode(request.constraint, value)
        elif name in SAMPLING_FIELDS:
            lone = name == "stop" and isinstance(value, str)
            _set(request.sampling, name, [value] if lone else value)
        elif name in _REQUEST_FIELDS:
            _set(request, name, value)
    return request


def build_tokenize(prompt: str | Sequence[Turn], options: Mapping[str, Any]) -> pb.TokenizeRequest:
    """The message for a text or messages; OptionError names what it cannot hold."""
    for name, value in options.items():
        if value is not None and name not in _CHAT_FIELDS:
            raise OptionError(f"{name}: goes with generate, not with tokenize")
    request = build_request(prompt, options)
    match request.WhichOneof("prompt"):
        case "text":
            return pb.TokenizeRequest(text=request.text)
        case "chat":
            return pb.TokenizeRequest(chat=request.chat)
    raise OptionError("prompt: text or messages, not token ids")


def build_detokenize(token_ids: Sequence[int]) -> pb.DetokenizeRequest:
    """The message for ids; OptionError names an invalid one."""
    request = pb.DetokenizeRequest()
    _set(request, "token_ids", token_ids)
    return request


def _set(message: Any, name: str, value: Any, where: str = "") -> None:
    """Set a field, whose type says what it can hold. where: the argument's name."""
    where = where or name
    kind = message.DESCRIPTOR.fields_by_name[name].type
    check = _BY_TYPE[kind]
    if not hasattr(getattr(message, name), "extend"):
        setattr(message, name, check(where, value))
        return
    listed = arguments.items(where, value, _ITEMS[kind])
    checked = [check(f"{where}[{i}]", item) for i, item in enumerate(listed)]
    getattr(message, name).extend(checked)


_ITEMS = {FieldDescriptor.TYPE_STRING: "strings", FieldDescriptor.TYPE_UINT32: "token ids"}


def _set_prompt(request: pb.GenerateRequest, prompt: Prompt, chat: dict[str, Any]) -> None:
    if isinstance(prompt, str):
        _refuse_chat_options(chat)
        request.text = arguments.text("prompt", prompt)
        return
    if isinstance(prompt, Message | Mapping):
        raise OptionError("prompt: one message alone; put it into a list")
    if isinstance(prompt, bytes | bytearray | memoryview) or not isinstance(prompt, Sequence):
        raise OptionError(f"prompt: text, token ids or messages, not {arguments.kind(prompt)}")
    turns = [turn for turn in prompt if isinstance(turn, Message | Mapping)]
    if not turns:
        _refuse_chat_options(chat)
        request.token_ids.SetInParent()
        _set(request.token_ids, "ids", prompt, "prompt: ids")
        return
    if len(turns) != len(prompt):
        raise OptionError("prompt: messages and token ids (or other things) in one list")
    for i, turn in enumerate(turns):
        request.chat.messages.append(encode_message(f"prompt: messages[{i}]", turn))
    _set_chat(request.chat, chat)


def _refuse_chat_options(chat: dict[str, Any]) -> None:
    if chat:
        raise OptionError(f"{sorted(chat)[0]}: goes with messages, not with text or token ids")


def _set_chat(message: pb.Chat, options: dict[str, Any]) -> None:
    for name, value in options.items():
        if name == "tools":
            for i, tool in enumerate(arguments.items(name, value, "tools")):
                message.tools.append(encode_tool(f"tools[{i}]", tool))
        elif name == "tool_choice":
            message.tool_choice.CopyFrom(encode_tool_choice(name, value))
        elif name == "chat_template_kwargs":
            message.chat_template_kwargs = write_object(name, value)
        else:
            _set(message, name, value)


def refuse_ids_only(request: pb.GenerateRequest) -> None:
    """Raises OptionError where a text is wanted and none will be made."""
    if request.ids_only:
        raise OptionError("ids_only: there is no text; use the events' token ids")
