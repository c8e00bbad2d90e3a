"""What very many items or blocks say in one turn is put together once: what grows with each would
take time by the square of their number, on threads that others wait for."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from quire.clients.openai import anthropic_input, response_input
from quire.clients.openai.faults import Faults
from quire.clients.openai.fields import Fields

PARTS = 50


class Turn:
    """In place of a message. writes: of its texts."""

    def __init__(self, **fields: Any) -> None:
        self.writes = 0
        self.content = self.reasoning_content = ""
        self.tool_calls = Turns()
        vars(self).update(fields, writes=0)

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)[name] = value
        vars(self)["writes"] += name in ("content", "reasoning_content")


class Turns(list[Turn]):
    def add(self, **fields: Any) -> Turn:
        self.append(Turn(**fields))
        return self[-1]


def items() -> dict[str, Any]:
    part = {"type": "reasoning_text", "text": "t"}
    thought = {"type": "reasoning", "summary": [], "content": [part]}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    text = {"role": "assistant", "content": "a"}
    return {"input": [*[thought] * PARTS, call, *[text] * PARTS]}


def blocks() -> dict[str, Any]:
    thought, text = {"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}
    return {"messages": [{"role": "assistant", "content": [thought] * PARTS + [text] * PARTS}]}


@pytest.mark.parametrize(
    ("read", "body"), [(response_input.read, items()), (anthropic_input.read, blocks())]
)
def test_a_turn_of_many_parts_is_put_together_once(
    read: Callable[[Fields, Any], Any], body: dict[str, Any]
) -> None:
    chat = SimpleNamespace(messages=Turns())
    read(Fields(body, Faults()), cast(Any, chat))
    [turn] = chat.messages
    assert (turn.reasoning_content, turn.content) == ("t" * PARTS, "a" * PARTS)
    assert turn.writes == 2
