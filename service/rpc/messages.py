"""A Chat message of the contract as plain values that a template can render.

Invariant: every field that is set arrives in the Conversation; roles are one of four.
"""

from typing import Any

from google.protobuf import struct_pb2

from quire.service.errors import Violation, invalid, invalid_field, show
from quire.service.text.chat_template import Conversation, Message
from quire.v1 import inference_pb2 as pb

ROLES = ("system", "user", "assistant", "tool")


def read(chat: pb.Chat) -> Conversation:
    """Raises Refusal for unknown roles and options that exclude each other."""
    faults = [
        Violation(f"chat.messages[{i}].role", f"{show(m.role)}: must be one of {', '.join(ROLES)}")
        for i, m in enumerate(chat.messages)
        if m.role not in ROLES
    ]
    if faults:
        raise invalid(faults)
    asked = chat.HasField("add_generation_prompt")
    if chat.continue_final_message and asked and chat.add_generation_prompt:
        raise invalid_field(
            "chat.add_generation_prompt", "true: excludes continue_final_message = true"
        )
    opens = chat.add_generation_prompt if asked else not chat.continue_final_message
    return Conversation(
        messages=tuple(_message(m) for m in chat.messages),
        tools=tuple(_tool(t) for t in chat.tools),
        template_args=_struct(chat.template_args),
        add_generation_prompt=opens,
        continue_final_message=chat.continue_final_message,
        allow_special_tokens=chat.allow_special_tokens,
    )


def _message(message: pb.ChatMessage) -> Message:
    read: Message = {"role": message.role, "content": message.content}
    if message.name:
        read["name"] = message.name
    if message.tool_calls:
        read["tool_calls"] = [
            {"type": "function", "function": {"name": c.name, "arguments": _struct(c.arguments)}}
            for c in message.tool_calls
        ]
    return read


def _tool(tool: pb.Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": _struct(tool.parameters),
        },
    }


def _struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    return {key: _value(value) for key, value in struct.fields.items()}


def _value(value: struct_pb2.Value) -> Any:
    """JSON has one kind of number; whole ones become int, as a template's author expects."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return _struct(value.struct_value)
    if kind == "list_value":
        return [_value(item) for item in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    if kind is None or kind == "null_value":
        return None
    return getattr(value, kind)
