"""What an answer is read into, and what has to be known to read it."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Syntax(enum.StrEnum):
    """How a model writes calls of tools."""

    HERMES = "hermes"
    """`<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>`: Qwen3, 2507."""
    XML = "qwen3-coder"
    """`<tool_call><function=f><parameter=a>1</parameter></function></tool_call>`: Qwen3-Coder and
    later."""


@dataclass(frozen=True, slots=True)
class Family:
    """What a model's answers may hold. syntax is None: no calls that could be read."""

    syntax: Syntax | None
    thinks: bool

    @property
    def name(self) -> str:
        """As the contract shows it."""
        return "think" if self.syntax is None else self.syntax.value


@dataclass(frozen=True, slots=True)
class Reading:
    """How one answer is to be read.

    syntax: None leaves calls in the text. thinking: whether the prompt has opened the thoughts.
    most_calls: further calls are left in the text. tools: by name the schema of its parameters.
    """

    syntax: Syntax | None = None
    thinks: bool = False
    thinking: bool = False
    most_calls: int | None = None
    tools: Mapping[str, Mapping[str, Any]] | None = None


class Kind(enum.Enum):
    """What an event brings more of."""

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
