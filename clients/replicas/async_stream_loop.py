"""The same loop for asyncio: an iterator, whose end by any way cancels the call."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, Self

import grpc
import grpc.aio

from quire.clients.errors import CallError, cancelled, from_rpc_error
from quire.clients.replicas.call_failover import Attempt
from quire.clients.replicas.stream_failover import Differs, Ending, Item, StreamFailover
from quire.v1 import inference_pb2 as pb


class Stream(Protocol):
    """The call of the moment, which others may cancel."""

    call: Any
    cancelled: bool

    def hold(self, call: Any) -> None:
        """This is the call now."""

    def cancel(self) -> None:
        """Idempotent."""


def task_is_cancelled() -> bool:
    """Tells a cancelled task from a cancelled call: grpc.aio raises the same for both."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class StreamIterator:
    """The iterator of one `async for`: the contract's messages, and Resumed if requested."""

    def __init__(
        self,
        failover: StreamFailover,
        opens: Callable[[Attempt, pb.GenerateRequest], Any],
        stream: Stream,
    ) -> None:
        self._failover = failover
        self._opens = opens
        self._stream = stream
        self._ready: deque[Item] = deque()
        self._error: CallError | None = None
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        while not self._ready:
            if self._error is not None:
                error, self._error, self._over = self._error, None, True
                raise error
            if self._over:
                raise StopAsyncIteration
            await self._step()
        return self._ready.popleft()

    async def _step(self) -> None:
        """Read one message, or go on elsewhere."""
        if self._stream.call is None:
            if self._stream.cancelled:
                raise cancelled()
            attempt, request = self._failover.begin()
            self._stream.hold(self._opens(attempt, request))
        try:
            message = await self._stream.call.read()
        except grpc.RpcError as raw:
            await self._follow(self._failover.ended(from_rpc_error(raw)))
            return
        except asyncio.CancelledError:
            self._stream.cancel()
            self._failover.close()
            if task_is_cancelled():
                raise
            raise cancelled() from None
        if message is grpc.aio.EOF:
            await self._follow(self._failover.ended(None))
            return
        try:
            self._ready.extend(self._failover.take(message))
        except Differs:
            self._stream.call.cancel()
            self._stream.call = None

    async def _follow(self, ending: Ending) -> None:
        self._ready.extend(ending.items)
        self._error = ending.error
        self._over = ending.wait is None and ending.error is None
        if ending.wait is not None:
            self._stream.call = None
            await asyncio.sleep(ending.wait)

    def __del__(self) -> None:
        self._failover.close()
        self._stream.cancel()


class OnlyMessages:
    """A StreamIterator's messages of the contract alone. It owns that: the call ends with it."""

    def __init__(self, items: StreamIterator) -> None:
        self._items = items

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pb.GenerateResponse:
        while True:
            item = await anext(self._items)
            if isinstance(item, pb.GenerateResponse):
                return item
