"""Values that only the event loop may read, for another thread.

Invariant: the value is read on the loop, between two of its turns, never while it changes.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE = 0.5  # seconds that a reader waits for a busy loop before it takes the last value


class LoopSnapshot(Generic[T]):
    """The loop's last word on something. loop None: there is none, everything is one thread."""

    def __init__(
        self,
        take: Callable[[], T],
        loop: asyncio.AbstractEventLoop | None,
        patience: float = PATIENCE,
    ) -> None:
        """Takes the first at once, so it is made on the loop."""
        self._take = take
        self._loop = loop
        self._patience = patience
        self._last = take()

    def read(self) -> T:
        """A value taken after this was called, or the last one where the loop is too busy. Not to
        be called on the loop."""
        if self._loop is None:
            return self._take()
        taken = threading.Event()

        def publish() -> None:
            self._last = self._take()
            taken.set()

        try:
            self._loop.call_soon_threadsafe(publish)
        except RuntimeError:  # the loop is closed: the last value stays
            return self._last
        taken.wait(self._patience)
        return self._last
