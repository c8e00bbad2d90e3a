"""Whose turn it is, among several servers that have a connection each.

Invariant: servers take turns. One whose last call found nobody there is passed over for a rest, as
long as another one is up; where none is, all are tried in their turn.

gRPC has a round robin of its own, which serves wherever it can; but one channel checks every
server's certificate against one and the same name. Servers with different names need a channel
each (see Connection.channels), and then somebody must choose.
"""

import threading
import time
from collections.abc import Callable

REST = 5.0  # seconds that a server is passed over


class Rotation:
    """Turns of `count` servers, by their index. Thread-safe."""

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._down_until = [float("-inf")] * count
        self._next = 0
        self._lock = threading.Lock()

    def take(self) -> int:
        """The server that the next call goes to."""
        with self._lock:
            count, now = len(self._down_until), self._clock()
            order = [(self._next + i) % count for i in range(count)]
            chosen = next((i for i in order if self._down_until[i] <= now), order[0])
            self._next = (chosen + 1) % count
            return chosen

    def report(self, server: int, *, up: bool) -> None:
        """What a call has found."""
        with self._lock:
            self._down_until[server] = float("-inf") if up else self._clock() + REST
