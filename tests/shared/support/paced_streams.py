"""An event loop whose time the test decides, and streams that a pacer wakes."""

import heapq
import itertools
from collections.abc import Callable

from quire.engine.client.pacing import (
    THREAD_SHARE,
    Pacer,
)


class Loop:
    """An event loop of its own time. Waking a stream costs CPU time, as its messages would."""

    def __init__(self, cost: float, share: float = THREAD_SHARE) -> None:
        self.cost = cost
        self.now = 0.0
        self.used = 0.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.calls_come = False
        self.pacer = Pacer(
            self.call_later,
            share,
            lambda: self.calls_come,
            wall=lambda: self.now,
            cpu=lambda: self.used,
        )

    def call_later(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + delay, next(self._order), call))

    def burn(self, seconds: float) -> None:
        self.now += seconds
        self.used += seconds

    def run_until(self, time: float) -> None:
        while self._timers and self._timers[0][0] <= time:
            due, _, call = heapq.heappop(self._timers)
            self.now = max(self.now, due)
            call()
        self.now = max(self.now, time)


class Stream:
    """Counts tokens as an engine's stream does: what comes between two wakes goes together."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waits: list[float] = []
        self.messages: list[int] = []
        self.longest_wait = 0.0

    def push(self, *, first: bool = False) -> None:
        self._waits.append(self._loop.now)
        if len(self._waits) == 1:
            self._loop.pacer.add(self, first=first)

    def wake(self) -> None:
        self.messages.append(len(self._waits))
        self.longest_wait = max(self.longest_wait, self._loop.now - self._waits[0])
        self._waits.clear()
        self._loop.burn(self._loop.cost)
