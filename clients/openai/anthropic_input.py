"""`system` and `messages` of Anthropic's bodies as the messages of a chat.

Invariant: a message is one of the chat's, but for the answers of tools in a user's: each is one of
its own, in front of the user's text.
"""

from collections.abc import Callable, Mapping
from typing import Any

from quire.clients.openai import text_parts
from quire.clients.openai.anthropic_names import Place
from quire.clients.openai.fields import Fields
from quire.v1 import inference_pb2 as pb

TEXTS_PASSED_OVER = ("cache_control", "citations")
_ROLES = ("assistant", "system", "user")
_FAILED = "Error: "  # templates have no other place for it
_INSTEAD = {
    "redacted_thinking": "cannot be read here: leave it out",
    "document": "is not supported: give its text",
    "search_result": "is not supported: give its text",
}


def read(body: Fields, chat: pb.Chat) -> tuple[Place, ...]:
    """Sets the messages. Returns the place of each. A last one of the assistant's is continued."""
    reader = _Messages(chat)
    system = text_parts.read(body, "system", ("text",), TEXTS_PASSED_OVER)
    if system:
        reader.add(Place(None), "system", system)
    body.require("messages")
    given = body.value("messages")
    if given == []:
        body.fault("messages", None, "is empty: at least one message is needed")
    elif not isinstance(given, list | None):
        body.fault("messages", given, "must be a list of messages")
    for i, value in enumerate(given if isinstance(given, list) else []):
        item = body.item(f"messages[{i}]", value)
        if item is not None:
            reader.read(item, i)
    if chat.messages and chat.messages[-1].role == "assistant":
        chat.continue_final_message, chat.add_generation_prompt = True, False
    return tuple(reader.places)


class _Messages:
    def __init__(self, chat: pb.Chat) -> None:
        self._chat = chat
        self.places: list[Place] = []

    def add(self, place: Place, role: str, content: str = "") -> pb.ChatMessage:
        self.places.append(place)
        return self._chat.messages.add(role=role, content=content)

    def read(self, item: Fields, i: int) -> None:
        """The body's message of this number."""
        role = item.text("role") or ""
        if role not in _ROLES:
            item.fault("role", role, f"must be one of {', '.join(_ROLES)}")
        item.require("content")
        content: Any = item.value("content")
        if content is None or isinstance(content, str):
            self.add(Place(i), role, content or "")
        elif not isinstance(content, list):
            item.fault("content", content, "must be a string or a list of blocks")
        elif role == "assistant":
            self._assistant(item, content, i)
        else:
            self._user(item, content, i, role)
        item.end()

    def _user(self, item: Fields, content: list[Any], i: int, role: str) -> None:
        texts: list[str] = []

        def text(block: Fields, _j: int) -> None:
            texts.append(text_parts.read_one(block, TEXTS_PASSED_OVER))

        def result(block: Fields, j: int) -> None:
            if texts:
                block.fault("type", "tool_result", "must stand before the message's text")
            self._result(block, Place(i, j))

        _each(item, content, {"text": text} | ({"tool_result": result} if role == "user" else {}))
        if texts or not content:
            self.add(Place(i), role, "".join(texts))

    def _result(self, block: Fields, place: Place) -> None:
        message = self.add(place, "tool")
        message.tool_call_id = _needed(block, "tool_use_id")
        failed = block.flag("is_error") or False
        text = text_parts.read(block, "content", ("text",), TEXTS_PASSED_OVER)
        message.content = _FAILED + text if failed else text
        block.passed_over("cache_control")
        block.end()

    def _assistant(self, item: Fields, content: list[Any], i: int) -> None:
        message = self.add(Place(i), "assistant")
        texts: list[str] = []
        thoughts: dict[int, str] = {}
        calls: list[int] = []

        def text(block: Fields, _j: int) -> None:
            texts.append(text_parts.read_one(block, TEXTS_PASSED_OVER))

        def thinking(block: Fields, j: int) -> None:
            thought = _thought(block)
            if thought:
                thoughts[j] = thought

        def call(block: Fields, j: int) -> None:
            calls.append(j)
            _read_call(block, message)

        _each(item, content, {"text": text, "thinking": thinking, "tool_use": call})
        message.content = "".join(texts)
        if thoughts:
            self._chat.omit_unshown_reasoning = True  # clients send thoughts back unasked
            message.reasoning_content = "".join(thoughts.values())
        self.places[-1] = Place(i, thought=next(iter(thoughts), 0), calls=tuple(calls))


def _each(
    item: Fields, content: list[Any], readers: Mapping[str, Callable[[Fields, int], None]]
) -> None:
    """Reads each block by its type."""
    for j, value in enumerate(content):
        block = item.item(f"content[{j}]", value)
        if block is None:
            continue
        kind = block.value("type")
        reader = readers.get(kind) if isinstance(kind, str) else None
        if reader is not None:
            reader(block, j)
        else:
            known = f"must be one of {', '.join(readers)}: this model reads text alone"
            block.fault("type", kind, _INSTEAD.get(str(kind), known))


def _thought(block: Fields) -> str:
    thought = block.required_text("thinking")
    block.passed_over("signature")  # nothing is signed here
    block.end()
    return thought


def _read_call(block: Fields, message: pb.ChatMessage) -> None:
    call = message.tool_calls.add(id=_needed(block, "id"), name=_needed(block, "name"))
    block.require("input")
    call.arguments_json = block.json_text("input")
    block.only("caller", {"type": "direct"}, why="must be direct: no tool runs on this server")
    block.passed_over("cache_control")
    block.end()


def _needed(block: Fields, field: str) -> str:
    block.require(field)
    told = block.text(field)
    if told == "":  # which the contract takes for none
        block.fault(field, None, "is empty")
    return told or ""
