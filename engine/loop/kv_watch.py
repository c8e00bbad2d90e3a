"""Numbers what happens to the cached blocks, for as long as somebody watches.

Invariant: numbers rise by one from change to change for the engine's life, and by one more
whenever watching begins: what happened in between was not recorded, so the number before it is
nobody's to go on from. They begin with the time, so that a number of an engine before this one is
not mistaken for one of its own.
"""

import time
from collections.abc import Callable

from quire.engine.scheduling.kv_events import CHANGES, SNAPSHOT, Known, KvEvents, KvLog


class KvWatch:
    """Of one prefix cache, or of a pair; on the engine's thread."""

    def __init__(self, cache: Known, clock: Callable[[], float] = time.time) -> None:
        """clock: seconds since 1970."""
        self._cache = cache
        self._clock = clock
        self._sequence = int(clock() * 1000)
        self._told: list[KvEvents] = []

    def begin(self) -> None:
        """Tell all that is held, and from then on what changes. Asked again: all once more."""
        if self._cache.log is None:
            self._sequence += 1
            self._cache.log = KvLog()
        self._collect()
        held = self._cache.snapshot()
        self._told.append(KvEvents(self._sequence, self._clock(), SNAPSHOT, held))

    def end(self) -> None:
        """Nobody watches any more."""
        self._cache.log = None
        self._told.clear()

    def take(self) -> tuple[KvEvents, ...]:
        """What there is to tell since the last call."""
        if self._cache.log is None:
            return ()
        self._collect()
        told, self._told = tuple(self._told), []
        return told

    def _collect(self) -> None:
        assert self._cache.log is not None
        events = self._cache.log.take()
        if events:
            self._sequence += 1
            self._told.append(KvEvents(self._sequence, self._clock(), CHANGES, events))
