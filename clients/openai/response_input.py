"""The items of a Responses body's `input` as the messages of a chat.

Invariant: what one turn of the model made (its thoughts, its text and its calls) is one message, as
templates show it. A call keeps the turn open until it is answered; else the turn ends with its
text.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping

from quire.clients.openai import text_parts
from quire.clients.openai.fields import Fields
from quire.clients.openai.response_names import Place
from quire.v1 import inference_pb2 as pb

_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
ITEMS_PASSED_OVER = ("id", "status", "phase")  # of an answer that comes back
PARTS_PASSED_OVER = (*text_parts.PASSED_OVER, "annotations", "logprobs")
_INSTEAD = {
    "item_reference": ": nothing is stored here, so send the item itself (some clients do with "
    "store = false)",
    "custom_tool_call": ": give a function, with its input as a parameter",
}


def read(body: Fields, chat: pb.Chat) -> tuple[Place, ...]:
    """Sets the messages: of the instructions, then of the input. Returns what each item became."""
    instructions = body.text("instructions")
    if instructions:
        chat.messages.add(role="system", content=instructions)
    given = body.value("input")
    if isinstance(given, str):
        chat.messages.add(role="user", content=given)
    elif isinstance(given, list):
        return _Items(chat).read(body, given)
    else:
        body.fault("input", given, "is missing" if given is None else "must be a string or items")
    return ()


class _Items:
    def __init__(self, chat: pb.Chat) -> None:
        self._chat, self._messages = chat, chat.messages
        self._spoken = False  # whether the last message holds a message's text
        # By the messages' numbers: a turn of very many items is put together once.
        self._texts: defaultdict[int, list[str]] = defaultdict(list)
        self._thoughts: defaultdict[int, list[str]] = defaultdict(list)
        self._readers: Mapping[object, Callable[[Fields], Place]] = {
            "message": self._message,
            "reasoning": self._reasoning,
            "function_call": self._function_call,
            "function_call_output": self._function_call_output,
        }

    def read(self, body: Fields, given: list[object]) -> tuple[Place, ...]:
        if not given:
            body.fault("input", None, "is empty: at least one item is needed")
        places = []
        for i, value in enumerate(given):
            item = body.item(f"input[{i}]", value)
            if item is not None:
                places.append(self._item(item))
        for number, texts in self._texts.items():
            self._messages[number].content = "".join(texts)
        for number, texts in self._thoughts.items():
            self._messages[number].reasoning_content = "".join(texts)
        return tuple(places)

    def _item(self, item: Fields) -> Place:
        kind = item.text("type")
        kind = "message" if kind is None else kind
        read = self._readers.get(kind)
        if read is None:
            known = f"must be one of {', '.join(map(str, self._readers))}"
            item.fault("type", kind, known + _INSTEAD.get(kind, ""))
            return self._place(kind)
        place = read(item)
        item.passed_over(*ITEMS_PASSED_OVER)
        item.end()
        return place

    def _message(self, item: Fields) -> Place:
        role = item.text("role") or ""
        if role not in _ROLES:
            item.fault("role", role, f"must be one of {', '.join(_ROLES)}")
        item.require("content")
        content = text_parts.read(item, "content", ("input_text", "output_text"), PARTS_PASSED_OVER)
        if role == "assistant":
            self._turn()
            self._texts[len(self._messages) - 1].append(content)
            self._spoken = True
        else:
            self._messages.add(role=_ROLES.get(role, role), content=content)
        return self._place("message")

    def _reasoning(self, item: Fields) -> Place:
        """The text, or if that is left out, its summary. What other servers have encrypted cannot
        be read here, and here nothing is encrypted."""
        whole = text_parts.read(item, "content", ("reasoning_text",))
        summary = text_parts.read(item, "summary", ("summary_text",))
        item.only("encrypted_content", "", why="cannot be read here: send content")
        if whole or summary:
            self._chat.omit_unshown_reasoning = True  # clients send thoughts back unasked
            self._turn()
            self._thoughts[len(self._messages) - 1].append(whole or summary)
        return self._place("reasoning")

    def _function_call(self, item: Fields) -> Place:
        message = self._turn(calls=True)
        call = message.tool_calls.add()
        call.id = item.required_text("call_id")
        call.name = item.required_text("name")
        call.arguments_json = item.required_text("arguments")
        return self._place("function_call")._replace(call=len(message.tool_calls) - 1)

    def _function_call_output(self, item: Fields) -> Place:
        item.require("output")
        call_id = item.required_text("call_id")
        output = text_parts.read(item, "output", ("input_text",))
        self._messages.add(role="tool", tool_call_id=call_id, content=output)
        return self._place("function_call_output")

    def _turn(self, *, calls: bool = False) -> pb.ChatMessage:
        """The message of the assistant's that goes on, or a new one. calls: it calls a tool."""
        if self._messages and self._messages[-1].role == "assistant":
            last = self._messages[-1]
            if calls or last.tool_calls or not self._spoken:
                return last
        self._spoken = False
        return self._messages.add(role="assistant")

    def _place(self, kind: str) -> Place:
        """Of an item that is, or is in, the last message."""
        return Place(len(self._messages) - 1, kind)
