"""Matchers that take a token each, and their masks: one after another, or many on llguidance's own
threads, where the interpreter's lock is given away twice, whatever their number. Of matchers that
share a lexer one is at work at a time: they stand together, so that a thread has them all.

Invariant: what comes of it is what each matcher would say alone. A call's masks stand side by side.
"""

import os
from collections.abc import Sequence
from typing import cast

import numpy as np
from llguidance import LLExecutor

from quire.engine.scheduling.matching import Mask, Matcher, Room, Step, one_by_one, parted
from quire.service.constraints.text_matcher import TextMatcher
from quire.service.constraints.thoughts import AfterThoughts

THREADS = max(1, min((os.cpu_count() or 1) // 2, 8))  # llguidance's
FEW = 24  # matchers are sooner asked one after another than so many threads are woken

_Texts = list[tuple[TextMatcher, int, int]]  # what takes which token, and at what place


class Together:
    """Implements `Matchers.advance`."""

    def __init__(self) -> None:
        self._executor: LLExecutor | None = None
        self.room: Room | None = None  # see Matchers.write_to

    def advance(self, steps: Sequence[Step]) -> Sequence[Mask | Exception]:
        """See Matchers."""
        found: list[Mask | Exception | None] = [None] * len(steps)
        texts: _Texts = []
        for at, (matcher, token_id) in enumerate(steps):
            text = matcher if type(matcher) is TextMatcher else _of_text(matcher)
            if text is None:
                (found[at],) = one_by_one([steps[at]])
            else:
                texts.append((text, token_id, at))
        if texts:
            texts.sort(key=_lexer)
            self._texts(texts, found)
        return cast(list[Mask | Exception], found)

    def _texts(self, texts: _Texts, found: list[Mask | Exception | None]) -> None:
        """Those of one vocabulary, all of them; those that share a lexer stand together."""
        tokens, count = texts[0][0].tokens, len(texts)
        size = tokens.mask_bytes
        room = self.room or (lambda count: parted(memoryview(bytearray(count * size)), count))
        whole, masks = room(count)
        octets = np.frombuffer(whole, np.uint8).reshape(count, size)  # llguidance writes by address
        took = self._work(texts, octets.ctypes.data, size)
        for i in tokens.ends:
            octets[:, i >> 3] &= ~(1 << (i & 7)) & 0xFF
        for (text, token_id, at), taken, mask in zip(texts, took, masks, strict=True):
            fine = taken and not text.backend.is_error()
            found[at] = mask if fine else text.refused(token_id)

    def _work(self, texts: _Texts, room: int, size: int) -> Sequence[bool]:
        """Whether each took its token. Masks of `size` bytes each come to the room's address; what
        stands there for one that did not means nothing."""
        apart = texts[0][0].lexer is not texts[-1][0].lexer
        if len(texts) < FEW or THREADS < 2 or not apart:
            return [_one(one, i, room + row * size, size) for row, (one, i, _) in enumerate(texts)]
        if self._executor is None:
            self._executor = LLExecutor(num_threads=THREADS)
        steps = [(text.backend, token_id) for text, token_id, _ in texts]
        masks = [(text.backend, row) for row, (text, _, _) in enumerate(texts)]
        took = self._executor.consume_token_par(steps)
        self._executor.unsafe_compute_mask_ptr(masks, room, size, len(masks))  # all still awake
        return took


def _one(text: TextMatcher, token_id: int, room: int, size: int) -> bool:
    """See Together._work."""
    took = text.backend.consume_token(token_id)
    text.backend.unsafe_compute_mask_ptr(room, size)
    return took


def _of_text(matcher: Matcher) -> TextMatcher | None:
    """What takes the token in, where that is llguidance alone."""
    inner = matcher.answering if isinstance(matcher, AfterThoughts) else matcher
    return inner if isinstance(inner, TextMatcher) else None


def _lexer(one: tuple[TextMatcher, int, int]) -> int:
    return id(one[0].lexer)
