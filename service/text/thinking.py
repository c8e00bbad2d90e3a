"""Whether a prompt ends inside the model's reasoning, or lets the model begin it.

Invariant: this follows from the prompt's end, from the template's options, and from the message
that the model is to continue; never from any other message.
"""

import enum
from collections.abc import Set

OPENS, CLOSES = "<think>", "</think>"
_SWITCHES = frozenset({"enable_thinking", "thinking"})  # names that turn thoughts on and off


class Thinking(enum.Enum):
    """Where the output begins."""

    NONE = enum.auto()  # in the answer
    OPENED = enum.auto()  # in thoughts
    MAY_OPEN = enum.auto()  # in thoughts, if the model opens them first of all


def thinking_of(
    prompt: str, variables: Set[str] = frozenset(), *, continued: str | None = None
) -> Thinking:
    """prompt: as rendered, or its end. variables: that the template looks up. continued: the
    content of a message that was left open, in which thoughts may be open too."""
    end = prompt.rstrip()
    if end.endswith(OPENS):
        return Thinking.OPENED
    if continued is not None:
        opened = continued.rfind(OPENS) > continued.rfind(CLOSES)
        return Thinking.OPENED if opened else Thinking.NONE
    if end.endswith(CLOSES) or _SWITCHES.isdisjoint(variables):
        return Thinking.NONE
    return Thinking.MAY_OPEN
