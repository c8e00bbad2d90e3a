"""Whether a rendered chat leaves its last turn in thoughts, or lets the model open them.

Invariant: told from the prompt's end and from what the template asks for, never from what a client
wrote in a message.
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


def thinking_of(prompt: str, variables: Set[str], *, continues: bool) -> Thinking:
    """prompt: as rendered. variables: that the template looks up. continues: a message was left
    open, so that thoughts in it may be open too."""
    end = prompt.rstrip()
    if end.endswith(OPENS) or (continues and prompt.rfind(OPENS) > prompt.rfind(CLOSES)):
        return Thinking.OPENED
    if end.endswith(CLOSES) or continues or _SWITCHES.isdisjoint(variables):
        return Thinking.NONE
    return Thinking.MAY_OPEN
