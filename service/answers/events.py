"""The parts that an answer is parsed into, and how to parse it."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Syntax(enum.StrEnum):
    """How a model writes tool calls."""

    HERMES = "hermes"
    """`<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>`: Qwen3, 2507."""
    XML = "qwen3-coder"
    """`<tool_call><function=f><parameter=a>1</parameter></function></tool_call>`: Qwen3-Coder and
    later."""


@dataclass(frozen=True, slots=True)
class Family:
    """What a model's answers may contain. syntax is None: no calls that could be parsed."""

    syntax: Syntax | None
    thinks: bool

    @property
    def name(self) -> str:
        """The family's name in the contract."""
        return "think" if self.syntax is None else self.syntax.value


@dataclass(frozen=True, slots=True)
class Reading:
    """How to parse one answer.

    syntax: None leaves calls in the text. thinking: whether the prompt has opened the reasoning.
    most_calls: further calls are left in the text. tools: the schemas of their parameters, by name.
    """

    syntax: Syntax | None = None
    thinks: bool = False
    thinking: bool = False
    most_calls: int | None = None
    tools: Mapping[str, Mapping[str, Any]] | None = None


class Kind(enum.Enum):
    """The part of the answer that an event adds to."""

    TEXT = "text"
    REASONING = "reasoning"
    CALL = "call"
    """A call begins; the event's text is the tool's name."""
    ARGUMENTS = "arguments"
    """More JSON text of the arguments of the call that began last."""


class Event(NamedTuple):
    """A piece of an answer. call: the number of the call, from 0; -1 where it is none."""

    kind: Kind
    text: str
    call: int = -1
