"""Messages and the text that the chat template makes of them.

Invariant: `render` writes what the template in `vocabulary` writes, character for character.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
THINK, THOUGHT = "<think>", "</think>"
CALL, CALLED = "<tool_call>", "</tool_call>"
RESPONSE, RESPONDED = "<tool_response>", "</tool_response>"

Definition = Mapping[str, Any]
"""A tool as OpenAI's API describes it: {"type": "function", "function": {…}}."""


@dataclass(frozen=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: Mapping[str, Any]

    @property
    def text(self) -> str:
        """As the model writes it, tags included."""
        return f'{CALL}\n{{"name": "{self.name}", "arguments": {dumps(self.arguments)}}}\n{CALLED}'


@dataclass(frozen=True)
class Message:
    """One message; `role` is system, user, assistant or tool."""

    role: str
    content: str
    thoughts: str = ""
    """What the assistant thinks before it answers."""
    calls: tuple[Call, ...] = ()
    """The assistant's calls, behind its content."""

    @property
    def spoken(self) -> str:
        """What the model writes in this turn behind opened thoughts, or behind its header."""
        parts = [self.content] if self.content else []
        text = "\n".join([*parts, *(call.text for call in self.calls)])
        return f"{self.thoughts}\n{THOUGHT}\n\n{text}" if self.thoughts else text


def dumps(value: Any) -> str:
    """JSON as the template's `tojson` writes it."""
    return json.dumps(value, ensure_ascii=False)


def _header(messages: Sequence[Message], tools: Sequence[Definition]) -> str:
    """The system turn that describes the tools, a given system message before them."""
    given = messages[0].content + "\n\n" if messages and messages[0].role == "system" else ""
    described = "\n".join(dumps(tool) for tool in tools)
    return f"{IM_START}system\n{given}Tools:\n{described}{IM_END}\n"


def _turn(message: Message) -> str:
    opened = f"{THINK}\n" if message.thoughts else ""
    return f"{IM_START}{message.role}\n{opened}{message.spoken}{IM_END}\n"


def render(
    messages: Sequence[Message],
    ask: bool = False,
    tools: Sequence[Definition] = (),
    thinks: bool = False,
) -> str:
    """The text of a conversation; `ask` opens the assistant's next turn, `thinks` its thoughts."""
    parts = [_header(messages, tools)] if tools else []
    if tools and messages and messages[0].role == "system":
        messages = messages[1:]
    for at, message in enumerate(messages):
        if message.role != "tool":
            parts.append(_turn(message))
            continue
        if at == 0 or messages[at - 1].role != "tool":
            parts.append(f"{IM_START}user")
        parts.append(f"\n{RESPONSE}\n{message.content}\n{RESPONDED}")
        if at + 1 == len(messages) or messages[at + 1].role != "tool":
            parts.append(f"{IM_END}\n")
    if ask:
        parts.append(f"{IM_START}assistant\n" + (f"{THINK}\n" if thinks else ""))
    return "".join(parts)
