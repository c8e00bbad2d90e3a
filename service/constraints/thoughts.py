"""Reasoning before a constrained answer: anything until it is closed, then the constraint.

Invariant: before the reasoning is closed no id that ends an output is allowed. Text after the
closing tag within the same token counts for the answer, except whitespace; one token of line breaks
may come between them, as models write it.
"""

import enum
from typing import Protocol

from quire.engine.request import Constraint
from quire.engine.scheduling.matching import Matcher


class Tokens(Protocol):
    """What must be known of a vocabulary. ends: the ids that end an output."""

    ends: frozenset[int]
    mask_bytes: int

    def bytes_of(self, token_id: int) -> bytes: ...

    def ids_of(self, text: bytes) -> list[int]: ...


class _State(enum.Enum):
    BEGIN = enum.auto()  # thoughts may be opened by the output, and have not been
    OPENING = enum.auto()  # some tokens of the opening tag have come
    THINKING = enum.auto()
    GAP = enum.auto()  # thoughts are closed: a line break or two in one token may follow
    ANSWER = enum.auto()


class AfterThoughts:
    """A `Matcher` that wraps `answer`, the matcher of what follows the reasoning."""

    def __init__(self, answer: Matcher, tokens: Tokens, constraint: Constraint) -> None:
        self._answer = answer
        self._tokens = tokens
        self._constraint = constraint
        self._closes = constraint.closes.encode()
        self._opening = tokens.ids_of(constraint.opens.encode()) if constraint.opens else []
        breaks = (tokens.ids_of(text) for text in (b"\n", b"\n\n"))
        self._breaks = {ids[0] for ids in breaks if len(ids) == 1}
        self._opened = 0  # of _opening
        self._state = _State.BEGIN if constraint.opens else _State.THINKING
        self._tail = b""  # the last bytes of the thoughts

    @property
    def answering(self) -> Matcher | None:
        """The answer's own matcher, where all that comes is for that; None: not yet."""
        return self._answer if self._state is _State.ANSWER else None

    def mask(self) -> bytearray:
        """See Matcher."""
        if self._state is _State.ANSWER:
            return self._answer.mask()
        if self._state is _State.THINKING:
            mask = bytearray(b"\xff" * self._tokens.mask_bytes)
            for i in self._tokens.ends:
                mask[i >> 3] &= ~(1 << (i & 7))
            return mask
        if self._state is _State.GAP:
            mask = self._answer.mask()
            for i in self._breaks:
                mask[i >> 3] |= 1 << (i & 7)
            return mask
        begin = self._state is _State.BEGIN
        mask = self._answer.mask() if begin else bytearray(self._tokens.mask_bytes)
        following = self._opening[self._opened]
        mask[following >> 3] |= 1 << (following & 7)
        return mask

    def accept(self, token_id: int) -> None:
        """See Matcher."""
        if self._state is _State.ANSWER:
            self._answer.accept(token_id)
        elif self._state is _State.THINKING:
            self._think(token_id)
        elif self._state is _State.GAP:
            self._state = _State.ANSWER
            if token_id not in self._breaks or self._may_follow(token_id):
                self._answer.accept(token_id)
        elif token_id == self._opening[self._opened]:
            self._opened += 1
            opened = self._opened == len(self._opening)
            self._state = _State.THINKING if opened else _State.OPENING
        else:
            self._state = _State.ANSWER
            self._answer.accept(token_id)

    def _think(self, token_id: int) -> None:
        before, found, behind = (self._tail + self._tokens.bytes_of(token_id)).partition(
            self._closes
        )
        if not found:
            self._tail = before[-(len(self._closes) - 1) :]
            return
        self._state = _State.ANSWER if behind else _State.GAP
        rest = behind.lstrip()
        for begun in self._tokens.ids_of(rest) if rest else ():
            self._answer.accept(begun)

    def _may_follow(self, token_id: int) -> bool:
        return bool(self._answer.mask()[token_id >> 3] & 1 << (token_id & 7))

    def may_end(self) -> bool:
        """See Matcher."""
        begins = self._state in (_State.BEGIN, _State.GAP, _State.ANSWER)
        return begins and self._answer.may_end()

    def copy(self) -> "AfterThoughts":
        """See Matcher."""
        other = AfterThoughts(self._answer.copy(), self._tokens, self._constraint)
        other._opened, other._state, other._tail = self._opened, self._state, self._tail
        return other
