"""Matchers that take a token each, and their masks: one after another, or many on llguidance's own
threads, where the interpreter's lock is given away twice, whatever their number.

Invariant: what comes of it is what each matcher would say alone. Masks are made in one room, which
the next call uses again.
"""

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor, LLMatcher

from quire.engine.scheduling.matching import Mask, Matcher, Step, one_by_one
from quire.service.constraints.text_matcher import TextMatcher
from quire.service.constraints.thoughts import AfterThoughts

MAX_THREADS = 2  # more of them were slower beside an H200, at masks of 20 us each
FEW = 24  # matchers are sooner asked one after another than so many threads are woken

_Texts = list[tuple[TextMatcher, int]]


class Together:
    """Implements `Matchers.advance`."""

    def __init__(self) -> None:
        self._executor: LLExecutor | None = None
        self._room: npt.NDArray[np.int32] = np.empty((0, 0), np.int32)

    def advance(self, steps: Sequence[Step]) -> Sequence[Mask | Exception]:
        """See Matchers."""
        texts: _Texts = []
        places: list[int] = []
        others: list[int] = []
        for at, (matcher, token_id) in enumerate(steps):
            text = _of_text(matcher)
            if text is None:
                others.append(at)
            else:
                texts.append((text, token_id))
                places.append(at)
        told = self._texts(texts) if texts else []
        found = dict(zip(places, told, strict=True))
        found |= zip(others, one_by_one([steps[at] for at in others]), strict=True)
        return [found[at] for at in range(len(steps))]

    def _texts(self, texts: _Texts) -> list[Mask | Exception]:
        """Those of one vocabulary, all of them."""
        tokens, count = texts[0][0].tokens, len(texts)
        size = tokens.mask_bytes
        if self._room.shape[0] < count or self._room.shape[1] != size // 4:
            self._room = np.empty((count, size // 4), np.int32)
        room = self._room[:count]
        room[:] = 0
        took = self._consume(texts)
        asked = [(text.backend, row) for row, (text, _) in enumerate(texts) if took[row]]
        self._compute(asked, room.ctypes.data, size, count)
        octets = room.view(np.uint8)
        for i in tokens.ends:
            octets[:, i >> 3] &= ~(1 << (i & 7)) & 0xFF
        rows = memoryview(octets).cast("B")  # type: ignore[arg-type]
        return [
            _told(text, token_id, taken, rows[at * size : (at + 1) * size])
            for at, ((text, token_id), taken) in enumerate(zip(texts, took, strict=True))
        ]

    def _consume(self, texts: _Texts) -> Sequence[bool]:
        """Whether each took its token."""
        if len(texts) < FEW:
            return [text.backend.consume_token(token_id) for text, token_id in texts]
        return self._threads().consume_token_par([(text.backend, i) for text, i in texts])

    def _compute(
        self, asked: list[tuple[LLMatcher, int]], room: int, size: int, count: int
    ) -> None:
        """Write masks of `size` bytes each to the room's address, of which it has `count`."""
        if len(asked) < FEW:
            for matcher, row in asked:
                matcher.unsafe_compute_mask_ptr(room + row * size, size)
        else:
            self._threads().unsafe_compute_mask_ptr(asked, room, size, count)

    def _threads(self) -> LLExecutor:
        if self._executor is None:
            self._executor = LLExecutor(num_threads=min(os.cpu_count() or 1, MAX_THREADS))
        return self._executor


def _of_text(matcher: Matcher) -> TextMatcher | None:
    """What takes the token in, where that is llguidance alone."""
    inner = matcher.answering if isinstance(matcher, AfterThoughts) else matcher
    return inner if isinstance(inner, TextMatcher) else None


def _told(text: TextMatcher, token_id: int, taken: bool, mask: memoryview) -> Mask | Exception:
    try:
        if not taken:
            raise text.refused(token_id)
        text.check()
    except Exception as error:
        return error
    return mask
