"""Calls that have been let in and not ended: what a drain waits for."""

import asyncio
import contextlib
from collections.abc import Iterator


class OpenCalls:
    """Of one event loop."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def begin(self) -> None:
        """One more."""
        self._count += 1
        self._none.clear()

    def end(self) -> None:
        """One less."""
        self._count -= 1
        if not self._count:
            self._none.set()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A call that is open until the block is left."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    async def wait_none(self) -> None:
        """Returns when none is open."""
        await self._none.wait()
