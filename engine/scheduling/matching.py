"""The scheduler's interface to constraints: which ids may follow, accept a token, may it end?

Invariant: a `Constrained` has accepted exactly the known outputs of its index, and its mask is for
the next one. So preemption changes nothing, and a step's masks are ready when the results of all
earlier steps have been applied. Only the matcher knows what the constraint says, and about which
text.
"""

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from quire.engine.errors import ConstraintError
from quire.engine.request import Constraint, GenerationRequest, SamplingParams, Vocabulary


class Matcher(Protocol):
    """One output's way through its constraint. Raises ConstraintError where its limits end it."""

    def mask(self) -> bytearray:
        """Ids that may follow: bit i % 8 of byte i

        8 for id i, in words of 4 bytes. Ids that only end an output are not among them.
        """
        ...

    def accept(self, token_id: int) -> None:
        """One token more. Raises ConstraintError if it may not follow."""
        ...

    def may_end(self) -> bool:
        """Whether the accepted tokens satisfy the constraint."""
        ...

    def copy(self) -> "Matcher":
        """One that goes its own way from here."""
        ...


_SOME = re.compile(b"[^\\0]")

Mask = bytearray | memoryview
Places = tuple[memoryview, list[memoryview]]  # a buffer, and its equal parts, one for each mask
Room = Callable[[int], Places]  # for so many masks
Step = tuple[Matcher, int]  # a matcher, and the token that it takes
Advance = Callable[[Sequence[Step]], Sequence[Mask | Exception]]
BeginWork = Callable[[], Callable[[], object]]  # starts work on another thread; returns its wait


def one_by_one(steps: Sequence[Step]) -> list[Mask | Exception]:
    """See Matchers.advance."""
    found: list[Mask | Exception] = []
    for matcher, token_id in steps:
        try:
            matcher.accept(token_id)
            found.append(matcher.mask())
        except Exception as error:
            found.append(error)
    return found


def parted(buffer: memoryview, count: int) -> Places:
    """`buffer`, and a view of it for each of `count` masks."""
    size = len(buffer) // count
    return buffer, [buffer[at * size : (at + 1) * size] for at in range(count)]


class Matchers(Protocol):
    """Makes matchers. Any thread may call."""

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """The vocabulary that matchers are compiled for. Called before the first one is needed."""
        ...

    def get_ready(self) -> bool:
        """Do what would otherwise take the first matcher long. False: there is nothing to do."""
        ...

    def write_to(self, room: Room) -> None:
        """The memory into which `advance` writes its masks."""
        ...

    def set_concurrent_work(self, begin: BeginWork) -> None:
        """Work that `advance` may start, at most once, while many masks are computed; it waits for
        that work too."""
        ...

    def compile(self, constraint: Constraint) -> Matcher:
        """A matcher at its beginning. Raises RequestError, naming the field. May take long."""
        ...

    def advance(self, steps: Sequence[Step]) -> Sequence[Mask | Exception]:
        """One token more for each of several matchers, no two of them the same: each one's next
        mask, or what went wrong with it alone. What `one_by_one` finds, perhaps sooner; the
        engine's thread alone calls."""
        ...


class Constrained:
    """One index under a constraint: its matcher, and the parameters that matter for it.

    An ending id may be sampled if the constraint is satisfied and there are min_tokens. Where
    nothing else may follow, the output is complete, whatever min_tokens says.
    """

    __slots__ = ("_allowed", "_ending_ids", "_params", "mask", "matcher")

    def __init__(self, matcher: Matcher, params: SamplingParams) -> None:
        self.matcher = matcher
        self._params = params
        self._ending_ids = params.ending_ids
        self._allowed = sum(1 << i for i in set(params.allowed_token_ids))
        self.mask: bytes | Mask = b""  # of the next token; see prepare

    def copy(self) -> "Constrained":
        """The same state for a sibling."""
        sibling = Constrained(self.matcher.copy(), self._params)
        sibling.mask = self.mask
        return sibling

    def allows(self, token_id: int) -> bool:
        """Whether a token is of the mask that was made last."""
        return bool(self.mask[token_id >> 3] & 1 << (token_id & 7))

    def prepare(self, num_outputs: int, mask: Mask | None = None) -> bool:
        """Make the mask of the token that follows num_outputs outputs. mask: the matcher's; None:
        ask the matcher. Returns False if nothing may follow: the output is complete. Raises
        ConstraintError if it can neither continue nor end."""
        params = self._params
        mask = self.matcher.mask() if mask is None else mask
        if self._ending_ids:
            if num_outputs + 1 < params.min_tokens:
                _set(mask, self._ending_ids, False)
            elif self.matcher.may_end():
                _set(mask, self._ending_ids, True)
        if params.banned_token_ids:
            _set(mask, params.banned_token_ids, False)
        if self._allowed:
            both = int.from_bytes(mask, "little") & self._allowed
            mask = bytearray(both.to_bytes(len(mask), "little"))
        self.mask = mask
        if _SOME.search(mask):
            return True
        if not self.matcher.may_end():
            raise ConstraintError("no token that the request allows satisfies its constraint")
        return False


def constrained(matcher: Matcher, request: GenerationRequest) -> list[Constrained]:
    """A Constrained for each index, with the resumed outputs accepted. Raises ConstraintError."""
    params, resumed = request.sampling, request.resume_token_ids
    ended = bool(resumed) and resumed[-1] in params.ending_ids
    for token_id in resumed[:-1] if ended else resumed:
        matcher.accept(token_id)
    return [Constrained(matcher.copy(), params) for _ in range(request.n)]


def _set(mask: Mask, ids: "tuple[int, ...] | frozenset[int]", value: bool) -> None:
    for i in ids:
        if value:
            mask[i >> 3] |= 1 << (i & 7)
        else:
            mask[i >> 3] &= ~(1 << (i & 7))
