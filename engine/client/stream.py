"""The event loop's side of one request: what came from the engine and is not yet taken."""

import asyncio
import math

from quire.engine.errors import EngineDeadError
from quire.engine.request import Output

_SAME = 1e-3  # of an interval: a timer that is early by less is on time


def next_tick(now: float, interval: float) -> float:
    """The next multiple of the interval. All streams use the same multiples, so that the sending
    side wakes up once for all of them, which is most of the cost of a message."""
    return (math.floor(now / interval + _SAME) + 1) * interval


class Stream:
    """Joins a request's outputs until its reader takes them."""

    __slots__ = (
        "_next_at",
        "_pending",
        "_queued",
        "_ready",
        "_waiter",
        "error",
        "interval",
        "is_new",
        "is_silent",
        "open_indices",
        "timer",
    )

    def __init__(self, n: int, interval: float) -> None:
        self.interval = interval
        self._next_at = 0.0  # when the next update may follow the last: see next_tick
        self.timer: asyncio.TimerHandle | None = None  # for that time, if there is anything
        self.open_indices = set(range(n))
        self.error: EngineDeadError | None = None
        self._pending: dict[int, Output] = {}
        self._queued = False  # the pacer will wake it
        self._ready = False  # woken, and not yet taken from
        self.is_new = True  # no token has been taken yet
        self.is_silent = True  # nothing has been taken yet
        self._waiter: asyncio.Future[None] | None = None

    def push(self, output: Output) -> None:
        waiting = self._pending.get(output.index)
        if waiting is None:
            self._pending[output.index] = output
        else:
            waiting.join(output)

    @property
    def unread(self) -> int:
        """Tokens received and not taken."""
        return sum(len(output.token_ids) for output in self._pending.values())

    def wait(self, now: float) -> float:
        """Seconds for which more outputs may be joined to the pending ones; 0: deliver now."""
        ends = any(output.finish is not None for output in self._pending.values())
        return 0.0 if self.is_new or ends else self._next_at - now

    def queue(self) -> bool:
        """Whether to tell the pacer: there is something new, and no reader is about to take it."""
        if self._queued or self._ready:
            return False
        self._queued = True
        return True

    def wake(self) -> None:
        """Let the reader take the pending outputs."""
        self._queued = False
        self._ready = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Output]:
        """All pending outputs; at least one unless the stream was ended from outside."""
        if not self._ready:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._ready = self.is_silent = False
        taken, self._pending = list(self._pending.values()), {}
        if self.is_new:
            self.is_new = not any(output.token_ids for output in taken)
        if self.interval:
            self._next_at = next_tick(asyncio.get_running_loop().time(), self.interval)
        return taken

    def close(self) -> None:
        """Discard outputs from now on: the reader is gone."""
        if self.timer is not None:
            self.timer.cancel()
