"""Numbers the changes to cached blocks while there are watchers.

Invariant: numbers rise by one per change for the engine's life, and by one more whenever watching
begins again: changes in between were not recorded, so nobody can continue from the number before.
They start from the time, so that a number from an earlier engine is not mistaken for one of this
one.
"""

import time
from collections.abc import Callable

from quire.engine.scheduling.kv_events import CHANGES, SNAPSHOT, Known, KvEvents, KvLog


class KvWatch:
    """Watches one prefix cache, or a pair of them. Used on the engine's thread."""

    def __init__(self, cache: Known, clock: Callable[[], float] = time.time) -> None:
        """clock: seconds since 1970."""
        self._cache = cache
        self._clock = clock
        self._sequence = int(clock() * 1000)
        self._told: list[KvEvents] = []

    def begin(self) -> None:
        """Send everything that is held, then every change. If called again, everything is sent
        again."""
        if self._cache.log is None:
            self._sequence += 1
            self._cache.log = KvLog()
        self._collect()
        held = self._cache.snapshot()
        self._told.append(KvEvents(self._sequence, self._clock(), SNAPSHOT, held))

    def end(self) -> None:
        """Stop recording: there are no watchers left."""
        self._cache.log = None
        self._told.clear()

    def take(self) -> tuple[KvEvents, ...]:
        """The events since the last call."""
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
