"""Many matchers that take a token each, at once, on llguidance's own threads.

Invariant: what comes of it is what each matcher would say alone. Whatever their number, the
interpreter's lock is given away twice. Masks are made in one room, which the next call uses again.
"""

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor

from quire.engine.scheduling.matching import Mask, Matcher, Step, one_by_one
from quire.service.constraints.text_matcher import TextMatcher
from quire.service.constraints.thoughts import AfterThoughts

MAX_THREADS = 8
FEW = 8  # matchers are sooner asked one after another than so many threads are woken

_Texts = list[tuple[TextMatcher, int]]


class Together:
    """Implements `Matchers.advance`."""

    def __init__(self) -> None:
        self._executor: LLExecutor | None = None
        self._room: npt.NDArray[np.int32] = np.empty((0, 0), np.int32)

    def advance(self, steps: Sequence[Step]) -> Sequence[Mask | Exception]:
        """See Matchers."""
        if len(steps) < FEW:
            return one_by_one(steps)
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
        if self._executor is None:
            self._executor = LLExecutor(num_threads=min(os.cpu_count() or 1, MAX_THREADS))
        tokens, count = texts[0][0].tokens, len(texts)
        size = tokens.mask_bytes
        if self._room.shape[0] < count or self._room.shape[1] != size // 4:
            self._room = np.empty((count, size // 4), np.int32)
        took = self._executor.consume_token_par([(text.backend, i) for text, i in texts])
        asked = [(text.backend, row) for row, (text, _) in enumerate(texts) if took[row]]
        room = self._room[:count]
        room[:] = 0
        self._executor.unsafe_compute_mask_ptr(asked, room.ctypes.data, size, count)
        octets = room.view(np.uint8)
        for i in tokens.ends:
            octets[:, i >> 3] &= ~(1 << (i & 7)) & 0xFF
        rows = memoryview(octets).cast("B")  # type: ignore[arg-type]
        return [
            _told(text, token_id, taken, rows[at * size : (at + 1) * size])
            for at, ((text, token_id), taken) in enumerate(zip(texts, took, strict=True))
        ]


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
