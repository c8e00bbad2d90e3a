"""Calls over replicas whose answers, clock and chance the test decides."""

import grpc

from quire.clients import (
    CallError,
    ReplicaPolicy,
    RetryPolicy,
)
from quire.clients.errors import Details, call_error
from quire.clients.replicas.addresses import Address, Lookup
from quire.clients.replicas.budget import RetryBudget
from quire.clients.replicas.call_failover import CallFailover
from quire.clients.replicas.fleet import Fleet
from quire.clients.replicas.shared_state import SharedState
from quire.clients.replicas.stream_failover import StreamFailover
from quire.v1 import inference_pb2 as pb

Code = grpc.StatusCode


NAMES = ("a:1", "b:1", "c:1", "d:1", "e:1")


def error(
    code: Code = Code.UNAVAILABLE,
    message: str = "Socket closed",
    reason: str = "",
    after: float | None = None,
) -> CallError:
    made = call_error(code, message, None)
    made.details = Details(reason=reason, retry_after=after)
    return made


REFUSED = "failed to connect to all addresses; last error: Connection refused"


class World:
    """SharedState under the test's control. Jitter is none: every draw is the highest."""

    def __init__(self, *names: str, attempts: int = 4, credit: float = 1000, **policy: object):
        self.now = 0.0
        self.policy = ReplicaPolicy(routing="round_robin", **policy)  # type: ignore[arg-type]
        fleet = Fleet("round_robin", clock=self.clock)
        fleet.update(Address(name, name[0], 1) for name in names or NAMES[:3])
        self.shared = SharedState(
            self.policy,
            RetryPolicy(attempts=attempts, first_backoff=1.0, max_backoff=8.0),
            fleet,
            RetryBudget(credit, 0.0, 0.0, self.clock),
            Lookup([], 30.0, clock=self.clock),
            self.clock,
            lambda _low, high: high,
        )

    def clock(self) -> float:
        return self.now

    def failover(self, timeout: float | None = None) -> CallFailover:
        return CallFailover(self.shared, timeout)

    def stream(self, timeout: float | None = None, **sampling: object) -> StreamFailover:
        request = pb.GenerateRequest(text="x", sampling=pb.SamplingParams(**sampling))  # type: ignore[arg-type]
        return StreamFailover(self.shared, request, timeout)
