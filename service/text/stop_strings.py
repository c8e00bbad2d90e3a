"""Finds stop strings in a text that comes in pieces.

Invariant: after `feed`, the last `held` characters of all that was fed are the longest suffix that
may still become a stop string; whoever sends the text on sends none of them. What the finder finds
does not depend on where the pieces are cut: the first stop string to be complete, and of those that
end at the same character the longest.
"""

from collections.abc import Sequence
from typing import NamedTuple


class StopMatch(NamedTuple):
    """A stop string, with its place in characters from the beginning of all that was fed."""

    string: str
    start: int
    end: int


class StopFinder:
    """One stream's search. `stops` are non-empty strings."""

    __slots__ = ("_fed", "_stops", "_tail")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._tail = ""
        self._fed = 0

    @property
    def held(self) -> int:
        """Characters at the end that may begin a stop string."""
        return len(self._tail)

    def feed(self, text: str, *, honour: bool = True) -> StopMatch | None:
        """Take the next piece; a match is one that is completed by it.

        With honour False a stop string completed by this piece is passed over.
        """
        if not text:
            return None
        window = self._tail + text
        match = self._find(window) if honour else None
        self._fed += len(text)
        held = max(_overlap(window, stop) for stop in self._stops)
        self._tail = window[len(window) - held :]
        return match

    def _find(self, window: str) -> StopMatch | None:
        old, offset = len(self._tail), self._fed - len(self._tail)
        best: StopMatch | None = None
        for stop in self._stops:
            start = window.find(stop, max(0, old - len(stop) + 1))
            if start < 0:
                continue
            match = StopMatch(stop, offset + start, offset + start + len(stop))
            if best is None or (match.end, match.start) < (best.end, best.start):
                best = match
        return best


def _overlap(window: str, stop: str) -> int:
    """Length of the longest suffix of window that is a proper prefix of stop."""
    start = max(0, len(window) - len(stop) + 1)
    while (start := window.find(stop[0], start)) >= 0:
        if stop.startswith(window[start:]):
            return len(window) - start
        start += 1
    return 0
