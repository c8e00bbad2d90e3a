"""Ends calls whose clients do not read.

A message that gRPC cannot pass on waits in the call's task, and what the engine makes meanwhile
waits behind it. So each write must end within a time, and all that waits behind writes has a bound;
beyond it calls are ended, the one that holds the most first.

Invariant: a call is ended by cancelling its task. So it gives back what it holds as every call does
at its end. Its status is left with gRPC, which tells the client if it reads after all; nothing else
waits for that. The clock is handed in.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import grpc

from quire.service import errors

log = logging.getLogger("quire.service")

LOOK_SECONDS = 1.0
MAX_UNREAD = 1 << 21  # entries: a token, or one candidate of its log-probabilities
Context = grpc.aio.ServicerContext[Any, Any]
_T = TypeVar("_T")
_STALLED_SECONDS = 1.0  # a write that takes longer is the client's doing


class Writes:
    """One call's."""

    __slots__ = ("_clock", "_context", "_open", "_task", "ended", "since", "unread")

    def __init__(self, context: Context, clock: Callable[[], float], open_: "set[Writes]") -> None:
        """open_: where it is as long as its block is not left."""
        self._context = context
        self._clock = clock
        self._open = open_
        self._task = asyncio.current_task()
        self.since: float | None = None  # when the present write began
        self.unread: Callable[[], int] = lambda: 0  # entries that wait behind it
        self.ended = False

    def __enter__(self) -> "Writes":
        self._open.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.discard(self)

    def each(self, messages: Iterable[_T]) -> Iterator[_T]:
        """The same, of which each is handed over and has been passed on when the next is asked
        for."""
        for message in messages:
            self.since = self._clock()
            yield message
            self.since = None

    def stalled(self, now: float, seconds: float) -> bool:
        """Whether the present write takes so long."""
        return self.since is not None and now - self.since >= seconds

    def end_call(self, why: str) -> "asyncio.Task[None] | None":
        """Returns the telling of it; None where the call was ended before."""
        if self.ended or self._task is None:
            return None
        self.ended = True
        log.warning("a call is ended: %s", why)
        telling: asyncio.Task[None] = asyncio.ensure_future(
            errors.abort(self._context, errors.not_read(why))
        )
        self._task.cancel()
        return telling


class WriteWatch:
    """All calls' writes, on one event loop."""

    def __init__(
        self,
        seconds: float,
        max_unread: int = MAX_UNREAD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """seconds: that one write may take; 0: any time."""
        self._seconds = seconds
        self._max_unread = max_unread
        self._clock = clock
        self._open: set[Writes] = set()
        self._telling: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Calls that are watched."""
        return len(self._open)

    def call(self, context: Context) -> Writes:
        """The writes of the call that is this task's, as a context."""
        self._schedule()
        return Writes(context, self._clock, self._open)

    def look(self) -> None:
        """End calls that have stalled for too long, and, while too much waits, the largest."""
        now = self._clock()
        for writes in self._open:
            if self._seconds and writes.stalled(now, self._seconds):
                self._end(writes, f"its client has read nothing for {self._seconds:g} s")
        stalled = [w for w in self._open if not w.ended and w.stalled(now, _STALLED_SECONDS)]
        waiting = {writes: writes.unread() for writes in stalled}
        total = sum(waiting.values())
        for writes in sorted(waiting, key=waiting.__getitem__, reverse=True):
            if total <= self._max_unread:
                break
            total -= waiting[writes]
            self._end(writes, "its client does not read, and too much waits for it")

    def _end(self, writes: Writes, why: str) -> None:
        telling = writes.end_call(why)
        if telling is not None:
            self._telling.add(telling)
            telling.add_done_callback(self._told)

    def _told(self, telling: "asyncio.Task[None]") -> None:
        """It was read, or the client is gone; either ends in an exception of gRPC's."""
        self._telling.discard(telling)
        if not telling.cancelled():
            telling.exception()

    def _schedule(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.look()
        if self._open:
            self._schedule()
