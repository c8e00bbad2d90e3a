"""Distributes the events of cached blocks to all watchers, each at its own pace.

Invariant: a watcher gets a snapshot, or continues from a number that the hub still has, and then
every change once and in order. A watcher that falls behind, or asks to continue from a number that
is gone, gets a snapshot again. Watchers do not slow each other down. The engine records nothing
while there are no watchers.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence

from quire.engine.errors import EngineDeadError
from quire.engine.scheduling.kv_events import CHANGES, LOST, MAX_EVENTS, SNAPSHOT, KvEvents

MAX_HISTORY = 1 << 14  # events that watchers who come back can go on from


class _Watcher:
    """One reader's queue."""

    def __init__(self) -> None:
        self.needs_snapshot = True
        self.error: EngineDeadError | None = None
        self._waiting: deque[KvEvents] = deque()
        self._num_events = 0
        self._news = asyncio.Event()

    def push(self, batch: KvEvents) -> bool:
        """False: too much waits already, and only a snapshot helps."""
        if self._waiting and self._num_events + len(batch.events) > MAX_EVENTS:
            self.start_over()
            return False
        self._waiting.append(batch)
        self._num_events += len(batch.events)
        self._news.set()
        return True

    def start_over(self) -> None:
        """Drop what is queued: it is of no use before the next snapshot."""
        self._waiting.clear()
        self._num_events = 0
        self.needs_snapshot = True

    def fail(self, error: EngineDeadError) -> None:
        """Nothing more will come."""
        self.error = error
        self._news.set()

    async def take(self) -> KvEvents:
        """The next batch. Raises EngineDeadError once all was taken."""
        while not self._waiting:
            if self.error is not None:
                raise self.error
            self._news.clear()
            await self._news.wait()
        batch = self._waiting.popleft()
        self._num_events -= len(batch.events)
        return batch


class KvHub:
    """The hub of one engine, on its event loop."""

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        """begin: asks the engine for a snapshot, and for changes from then on. end: of neither."""
        self._begin = begin
        self._end = end
        self._watchers: set[_Watcher] = set()
        self._history: deque[KvEvents] = deque()
        self._num_history = 0
        self._sequence: int | None = None  # of the latest changes; None: a snapshot is to come

    async def watch(self, start: int = 0) -> AsyncGenerator[KvEvents, None]:
        """Changes number `start` and all after them, if they are known still; else a snapshot and
        the changes after it. Ends with EngineDeadError alone."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            if not self._go_on(watcher, start):
                self._begin()
            while True:
                yield await watcher.take()
        finally:
            self._watchers.discard(watcher)
            if not self._watchers:
                self._forget()
                self._end()

    def deliver(self, batches: Sequence[KvEvents]) -> None:
        """Pass on the engine's events, in order."""
        asked = False
        for batch in batches:
            if not self._watchers:
                return  # the loop did not know yet that there are no watchers
            if batch.kind == SNAPSHOT:
                self._take_snapshot(batch)
            elif self._follows(batch):
                asked |= not self._take_changes(batch)
            else:
                asked = True
                self._start_over()
        if asked:
            self._begin()

    def fail(self, error: EngineDeadError) -> None:
        """The engine has ended: watchers hear of it once they have taken what waits."""
        for watcher in self._watchers:
            watcher.fail(error)

    # ------------------------------------------------------------ one batch

    def _follows(self, batch: KvEvents) -> bool:
        if batch.kind == LOST:
            return False
        return self._sequence is None or batch.sequence == self._sequence + 1

    def _take_snapshot(self, batch: KvEvents) -> None:
        if self._sequence is not None and batch.sequence != self._sequence:
            self._start_over()  # changes were lost; here is what helps
        self._sequence = batch.sequence
        for watcher in self._watchers:
            if watcher.needs_snapshot:
                watcher.needs_snapshot = False
                watcher.push(batch)

    def _take_changes(self, batch: KvEvents) -> bool:
        """Queue changes for all watchers; False if one has fallen behind."""
        if self._sequence is None:
            return True  # of no use without the snapshot that is on its way
        self._sequence = batch.sequence
        self._remember(batch)
        pushed = [w.push(batch) for w in self._watchers if not w.needs_snapshot]
        return all(pushed)

    def _start_over(self) -> None:
        """Something was lost, perhaps a snapshot that was on its way: all need one."""
        self._forget()
        for watcher in self._watchers:
            watcher.start_over()

    # ------------------------------------------------------------ those who come back

    def _go_on(self, watcher: _Watcher, start: int) -> bool:
        """Queue the changes that a watcher has not seen; False if they are no longer kept."""
        if not self._history or not start:
            return False
        assert self._sequence is not None
        if not self._history[0].sequence <= start <= self._sequence + 1:
            return False
        watcher.needs_snapshot = False
        return all(watcher.push(b) for b in self._history if b.sequence >= start)

    def _remember(self, batch: KvEvents) -> None:
        assert batch.kind == CHANGES
        self._history.append(batch)
        self._num_history += len(batch.events)
        while self._num_history > MAX_HISTORY:
            self._num_history -= len(self._history.popleft().events)

    def _forget(self) -> None:
        self._history.clear()
        self._num_history = 0
        self._sequence = None
