"""A call of the deployment of engines as the clients' own loop wants it: read, cancel, a status.

Invariant: a replica that is gone is UNAVAILABLE, whatever Ray calls it, so the stream goes on at
another, as often as the clients' policy says, by the seed and the ids that were received.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from quire.clients.errors import CallError
from quire.clients.replicas.addresses import Address
from quire.clients.replicas.affinity import keys_of
from quire.clients.replicas.async_stream_loop import OnlyMessages, StreamIterator, task_is_cancelled
from quire.clients.replicas.budget import RetryBudget
from quire.clients.replicas.call_failover import Attempt
from quire.clients.replicas.fleet import Fleet
from quire.clients.replicas.policy import PREFIX, ReplicaPolicy
from quire.clients.replicas.shared_state import SharedState
from quire.clients.replicas.stream_failover import StreamFailover
from quire.clients.retry import RetryPolicy
from quire.service import errors
from quire.service.ray.call_ends import Pairs, error_of, refusal_of, refused
from quire.v1 import inference_pb2 as pb

LOST = "the replica is gone"
_GONE = (RayError, RayServeException, grpc.aio.AioRpcError)  # the last of Ray's own channels


class _Everywhere:
    """Takes the place of a name look-up: Ray knows where its replicas are."""

    def refresh(self, update: Any) -> None:
        """Nothing changes."""

    def lost(self) -> None:
        """Ray notices by itself."""


class Streams:
    """The streams of one ingress."""

    def __init__(self, engines: Any) -> None:
        """engines: the handle of their deployment."""
        self._generate = engines.options(stream=True).generate
        self._ask = engines.ask
        policy, retry = ReplicaPolicy(), RetryPolicy()
        fleet = Fleet(PREFIX)
        fleet.update([Address("replicas", "replicas", 1)])
        budget = RetryBudget(policy.budget, policy.budget_per_call, policy.budget_per_second)
        lookup = cast(Any, _Everywhere())
        self._shared = SharedState(policy, retry, fleet, budget, lookup, time.monotonic)

    async def generate(
        self, request: pb.GenerateRequest, metadata: Pairs
    ) -> AsyncIterator[pb.GenerateResponse]:
        """One unbroken stream, over as many replicas as that takes. Raises Refusal."""
        stream = _Stream()

        def opens(_attempt: Attempt, wanted: pb.GenerateRequest) -> "_Call":
            keys = keys_of(wanted)
            told = (keys.root, keys.prefixes)
            packed = wanted.SerializeToString()
            return _Call(self._generate.remote(packed, list(metadata), keys=told))

        try:
            failover = StreamFailover(self._shared, request, None)
            async for message in OnlyMessages(StreamIterator(failover, opens, stream)):
                yield message
        except CallError as error:
            raise refusal_of(error) from error
        finally:
            stream.cancel()

    async def ask(self, method: str, request: Any, metadata: Pairs) -> bytes:
        """Any replica's answer. Raises Refusal."""
        try:
            answer = await self._ask.remote(method, request.SerializeToString(), list(metadata))
        except _GONE as error:
            raise errors.unavailable(LOST, "NO_REPLICA") from error
        if isinstance(answer, bytes):
            return answer
        raise refused(answer)


class _Stream:
    """Holds the call of the moment."""

    def __init__(self) -> None:
        self.call: Any = None
        self.cancelled = False

    def hold(self, call: Any) -> None:
        """This is the call now."""
        self.call = call

    def cancel(self) -> None:
        """Idempotent."""
        self.cancelled = True
        if self.call is not None:
            self.call.cancel()


class _Call:
    """One replica's stream, in the words of grpc.aio."""

    def __init__(self, responses: Any) -> None:
        self._responses = responses
        self._over = False

    async def read(self) -> Any:
        """A message, or EOF. Raises AioRpcError."""
        try:
            item = await anext(self._responses)
        except StopAsyncIteration:
            self._over = True
            return grpc.aio.EOF
        except asyncio.CancelledError as error:
            if self._over or task_is_cancelled():
                raise
            self._over = True  # the replica is being stopped
            raise error_of(("UNAVAILABLE", LOST, ())) from error
        except _GONE as error:
            self._over = True
            raise error_of(("UNAVAILABLE", LOST, ())) from error
        if isinstance(item, bytes):
            return pb.GenerateResponse.FromString(item)
        self._over = True
        raise error_of(item)

    def cancel(self) -> None:
        """Repeated calls are nothing."""
        if not self._over:
            self._over = True
            self._responses.cancel()
