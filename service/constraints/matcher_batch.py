"""Advances many matchers by a token each and makes their masks: one by one, or on llguidance's
threads.

With those threads the interpreter's lock is released twice, however many matchers there are; the
second time is the longer one, and other work may use it. Matchers that share a lexer cannot work at
the same time, so one thread gets all of them.

Invariant: each matcher gives what it would give alone. A call's masks are adjacent in memory.
"""

import os
from collections.abc import Sequence
from typing import cast

import numpy as np
from llguidance import LLExecutor, LLMatcher

from quire.engine.scheduling.matching import (
    BeginWork,
    Mask,
    Matcher,
    Room,
    Step,
    one_by_one,
    parted,
)
from quire.service.constraints.text_matcher import TextMatcher
from quire.service.constraints.thoughts import AfterThoughts

THREADS = max(1, min((os.cpu_count() or 1) // 2, 8))  # llguidance's
FEW = 24  # matchers are sooner asked one after another than so many threads are woken

_Texts = list[tuple[TextMatcher, int]]  # those that share a lexer together, and their places
_Asked = list[tuple[LLMatcher, int]]  # what takes which token


class MatcherBatch:
    """Implements `Matchers.advance`."""

    def __init__(self) -> None:
        self._executor: LLExecutor | None = None
        self._matchers: list[Matcher] = []  # that were asked together last, all of them of text
        self._texts: _Texts = []  # the same, in order
        self.room: Room | None = None  # see Matchers.write_to
        self.begin_work: BeginWork = lambda: lambda: None  # see Matchers.set_concurrent_work

    def advance(self, steps: Sequence[Step]) -> Sequence[Mask | Exception]:
        """See Matchers."""
        matchers = [matcher for matcher, _ in steps]
        found: list[Mask | Exception | None] = [None] * len(steps)
        texts = self._texts
        if matchers != self._matchers:  # else all is as it was a step before
            texts = _of_texts(matchers)
            if len(texts) == len(matchers):
                self._matchers, self._texts = matchers, texts
            for at in {*range(len(steps))}.difference([at for _, at in texts]):
                (found[at],) = one_by_one([steps[at]])
        if texts:
            self._take(texts, steps, found)
        return cast(list[Mask | Exception], found)

    def _take(
        self, texts: _Texts, steps: Sequence[Step], found: list[Mask | Exception | None]
    ) -> None:
        """Advance all matchers of one vocabulary."""
        tokens, count = texts[0][0].tokens, len(texts)
        size = tokens.mask_bytes
        room = self.room or (lambda count: parted(memoryview(bytearray(count * size)), count))
        whole, masks = room(count)
        octets = np.frombuffer(whole, np.uint8).reshape(count, size)  # llguidance writes by address
        asked = [(text.backend, steps[at][1]) for text, at in texts]
        apart = texts[0][0].lexer is not texts[-1][0].lexer
        took = self._work(asked, octets.ctypes.data, size, apart=apart)
        for i in tokens.ends:
            octets[:, i >> 3] &= ~(1 << (i & 7)) & 0xFF
        for (text, at), taken, mask in zip(texts, took, masks, strict=True):
            fine = taken and not text.backend.is_error()
            found[at] = mask if fine else text.refused(steps[at][1])

    def _work(self, asked: _Asked, room: int, size: int, *, apart: bool) -> Sequence[bool]:
        """Whether each took its token. Masks of `size` bytes each come to the room's address; what
        stands there for one that did not means nothing. apart: there are several lexers."""
        if len(asked) < FEW or THREADS < 2 or not apart:
            return [_one(one, i, room + row * size, size) for row, (one, i) in enumerate(asked)]
        if self._executor is None:
            self._executor = LLExecutor(num_threads=THREADS)
        masks = [(backend, row) for row, (backend, _) in enumerate(asked)]
        took = self._executor.consume_token_par(asked)
        wait = self.begin_work()
        try:
            self._executor.unsafe_compute_mask_ptr(masks, room, size, len(masks))  # still awake
        finally:
            wait()
        return took


def _one(backend: LLMatcher, token_id: int, room: int, size: int) -> bool:
    """See MatcherBatch._work."""
    took = backend.consume_token(token_id)
    backend.unsafe_compute_mask_ptr(room, size)
    return took


def _of_texts(matchers: Sequence[Matcher]) -> _Texts:
    """The matchers of llguidance itself, if there is nothing around them."""
    texts = [(_of_text(matcher), at) for at, matcher in enumerate(matchers)]
    return sorted([(text, at) for text, at in texts if text is not None], key=_lexer)


def _of_text(matcher: Matcher) -> TextMatcher | None:
    """The matcher of llguidance itself, if there is nothing around it."""
    inner = matcher.answering if isinstance(matcher, AfterThoughts) else matcher
    return inner if isinstance(inner, TextMatcher) else None


def _lexer(one: tuple[TextMatcher, int]) -> int:
    return id(one[0].lexer)
