"""The synchronous loop over a stream that may go on elsewhere."""

import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol

import grpc

from quire.clients.errors import cancelled, from_rpc_error
from quire.clients.replicas.call_failover import Attempt
from quire.clients.replicas.stream_failover import Differs, Ending, Item, StreamFailover
from quire.v1 import inference_pb2 as pb


class Holder(Protocol):
    """Lets other threads cancel the current call."""

    def hold(self, call: Any) -> None:
        """This is the call now; cancels it if the stream was closed meanwhile."""

    @property
    def closed(self) -> bool:
        """Whether the stream is no longer wanted."""


def read_stream(
    failover: StreamFailover, opens: Callable[[Attempt, pb.GenerateRequest], Any], holder: Holder
) -> Iterator[Item]:
    """What the caller gets, until the end. Raises CallError."""
    try:
        while True:
            if holder.closed:
                raise cancelled()
            attempt, request = failover.begin()
            call = opens(attempt, request)
            holder.hold(call)
            try:
                ending = yield from _read(call, failover)
            except Differs:
                call.cancel()
                continue
            yield from ending.items
            if ending.error is not None:
                raise ending.error
            if ending.wait is None:
                return
            time.sleep(ending.wait)
    finally:
        failover.close()


def _read(call: Any, failover: StreamFailover) -> Generator[Item, None, Ending]:
    """One replica's stream, and what follows its end. Raises Differs."""
    while True:
        try:
            message = next(call)
        except StopIteration:
            return failover.ended(None)
        except grpc.RpcError as raw:
            return failover.ended(from_rpc_error(raw))
        yield from failover.take(message)
