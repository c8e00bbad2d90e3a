"""The retry budget, shared by all calls of a client.

Invariant: over any time the client retries at most `size` times, plus `per_call` for each call that
began meanwhile and `per_second` for each second. So clients of a fleet in trouble do not double its
load: with the usual 0.5 they send at most half as much again, once what was saved up is used. A
token bucket. Thread-safe.
"""

import threading
import time
from collections.abc import Callable


class RetryBudget:
    """Begins full."""

    def __init__(
        self,
        size: float,
        per_call: float,
        per_second: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._size, self._per_call, self._per_second = float(size), per_call, per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._credit, self._at = self._size, clock()

    def call_began(self) -> None:
        """Count a call, however it ends."""
        with self._lock:
            self._earn(self._per_call)

    def take(self) -> bool:
        """Pay for asking once more; False: there is no credit for that."""
        with self._lock:
            self._earn(0.0)
            if self._credit < 1.0:
                return False
            self._credit -= 1.0
            return True

    def _earn(self, amount: float) -> None:
        now = self._clock()
        amount += (now - self._at) * self._per_second
        self._credit, self._at = min(self._credit + amount, self._size), now
