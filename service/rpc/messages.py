"""A Chat message of the contract as plain values that a template can render.

Invariant: every field that is set arrives in the Conversation, and no key that was not set; roles
are one of four. JSON arrives as the client wrote it (see strict_json). Arguments that are no JSON
object, which a model may have written, arrive as text.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from quire.clients.strict_json import BadJson, read_object
from quire.service.answers.parser import MAX_NAME, is_name
from quire.service.errors import Violation, invalid, invalid_field, show
from quire.service.text.chat_template import Conversation, Message
from quire.v1 import inference_pb2 as pb

_WAYS: tuple[Callable[[str], str], ...] = (  # in which a template may show a text
    str,
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: json.dumps(text)[1:-1],
)
ROLES = ("system", "user", "assistant", "tool")


def read(chat: pb.Chat) -> Conversation:
    """Raises Refusal for a chat that no template could render: unknown roles, bad JSON, missing
    ids."""
    faults = [*_faults_of_messages(chat.messages), *_faults_of_tools(chat.tools)]
    if faults:
        raise invalid(faults)
    hidden = chat.tool_choice.mode == pb.TOOL_CHOICE_MODE_NONE
    return Conversation(
        messages=tuple(map(_message, chat.messages)),
        tools=() if hidden else tuple(_tool(i, t) for i, t in enumerate(chat.tools)),
        chat_template_kwargs=_json("chat.chat_template_kwargs", chat.chat_template_kwargs),
        add_generation_prompt=_opens(chat),
        continue_final_message=chat.continue_final_message,
        allow_special_tokens=chat.allow_special_tokens,
        omit_unshown_reasoning=chat.omit_unshown_reasoning,
    )


def refuse_lost_arguments(chat: Conversation, rendered: str) -> None:
    """Raise Refusal for arguments that are no JSON object and that a template does not show as they
    are, or as a JSON string. rendered: the prompt; empty where it could not be rendered."""
    texts = [
        (f"chat.messages[{i}].tool_calls[{j}].arguments_json", call["function"]["arguments"])
        for i, message in enumerate(chat.messages)
        for j, call in enumerate(message.get("tool_calls", ()))
        if isinstance(call["function"]["arguments"], str)
    ]
    if any(_in_order((write(text) for _, text in texts), rendered) for write in _WAYS):
        return
    where, text = texts[0]
    try:
        read_object(text)
    except BadJson as error:
        why = f"{error}; and the chat template does not show it as it is"
        raise invalid_field(where, why) from error


def _in_order(parts: Iterable[str], text: str) -> bool:
    """Whether a text holds all of them, one behind the other."""
    at = 0
    for part in parts:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _opens(chat: pb.Chat) -> bool:
    """Whether an assistant's turn is opened at the end."""
    if not chat.HasField("add_generation_prompt"):
        return not chat.continue_final_message
    if chat.continue_final_message and chat.add_generation_prompt:
        raise invalid_field(
            "chat.add_generation_prompt", "true: excludes continue_final_message = true"
        )
    return chat.add_generation_prompt


def _faults_of_messages(messages: Iterable[pb.ChatMessage]) -> Iterator[Violation]:
    calls: set[str] = set()  # ids given so far
    for i, message in enumerate(messages):
        where = f"chat.messages[{i}]"
        if message.role not in ROLES:
            known = ", ".join(ROLES)
            yield Violation(f"{where}.role", f"{show(message.role)}: must be one of {known}")
        if message.HasField("reasoning_content") and message.role != "assistant":
            yield Violation(f"{where}.reasoning_content", "goes with role assistant alone")
        yield from _faults_of_answer(where, message, calls)
        for j, call in enumerate(message.tool_calls):
            if not call.name:
                yield Violation(f"{where}.tool_calls[{j}].name", "is empty: a function's name")
            if call.id and call.id in calls:
                yield Violation(f"{where}.tool_calls[{j}].id", f"{show(call.id)}: given twice")
            calls.add(call.id)


def _faults_of_answer(where: str, message: pb.ChatMessage, calls: set[str]) -> Iterator[Violation]:
    called = message.tool_call_id
    if called and message.role != "tool":
        yield Violation(f"{where}.tool_call_id", "goes with role tool alone")
    elif called and called not in calls:
        yield Violation(
            f"{where}.tool_call_id", f"{show(called)}: no call of an earlier turn has this id"
        )


def _faults_of_tools(tools: Iterable[pb.Tool]) -> Iterator[Violation]:
    names: set[str] = set()
    for i, tool in enumerate(tools):
        if not tool.name:
            yield Violation(f"chat.tools[{i}].name", "is empty: a function's name")
        elif tool.name in names:
            yield Violation(f"chat.tools[{i}].name", f"{show(tool.name)}: given twice")
        elif not is_name(tool.name):
            yield Violation(
                f"chat.tools[{i}].name",
                f"{show(tool.name)}: must have at most {MAX_NAME} characters as JSON, and no <, >"
                " or control characters: a call could not be read",
            )
        names.add(tool.name)


def _message(message: pb.ChatMessage) -> Message:
    read: Message = {"role": message.role, "content": message.content}
    if message.HasField("reasoning_content"):
        read["reasoning_content"] = message.reasoning_content
    for name in ("name", "tool_call_id"):
        if value := getattr(message, name):
            read[name] = value
    if message.tool_calls:
        read["tool_calls"] = [_call(call) for call in message.tool_calls]
    return read


def _call(call: pb.ToolCall) -> dict[str, Any]:
    arguments: dict[str, Any] | str
    try:
        arguments = read_object(call.arguments_json) if call.arguments_json else {}
    except BadJson:
        arguments = call.arguments_json
    read: dict[str, Any] = {"id": call.id} if call.id else {}
    return read | {"type": "function", "function": {"name": call.name, "arguments": arguments}}


def _tool(i: int, tool: pb.Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.HasField("description"):
        function["description"] = tool.description
    if tool.parameters_json:
        where = f"chat.tools[{i}].parameters_json"
        function["parameters"] = _json(where, tool.parameters_json)
    return {"type": "function", "function": function}


def _json(where: str, text: str) -> dict[str, Any]:
    """The object that a field's text holds; empty where the field is."""
    try:
        return read_object(text) if text else {}
    except BadJson as error:
        raise invalid_field(where, str(error)) from error
