"""Calls that have been let in and not ended, which is what a drain waits for; and how one ended."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import grpc


class OpenCalls:
    """The open calls of one event loop."""

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
        """Returns when no call is open."""
        await self._none.wait()


def ended_code(
    code: grpc.StatusCode, context: grpc.aio.ServicerContext[Any, Any]
) -> grpc.StatusCode:
    """The code as the client sees it: a call that was cut off may have met its deadline."""
    if code is not grpc.StatusCode.CANCELLED:
        return code
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return code
