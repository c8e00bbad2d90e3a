"""What a client of several replicas holds beside its channels, and the loop of a single answer."""

import time
from collections.abc import Callable
from typing import Any

import grpc

from quire.clients.connection import Connection
from quire.clients.errors import from_rpc_error
from quire.clients.replicas.addresses import Lookup, resolve
from quire.clients.replicas.budget import Budget
from quire.clients.replicas.call_failover import Attempt, CallFailover, Surroundings
from quire.clients.replicas.fleet import Fleet
from quire.clients.replicas.lines import Line, Lines
from quire.clients.replicas.policy import ReplicaPolicy, as_replica_policy
from quire.clients.retry import RetryPolicy

Method = Callable[[Line[Any]], Any]


def surroundings(
    connection: Connection, policy: ReplicaPolicy | None, retry: RetryPolicy
) -> Surroundings | None:
    """None: one address, and nothing said of replicas, so that nobody has to choose."""
    if len(connection.hosts) == 1 and policy is None:
        return None
    chosen = as_replica_policy(policy)
    lookup = Lookup(connection.hosts, chosen.lookup_seconds, resolver=resolve)
    fleet = Fleet(chosen.routing)
    fleet.update(lookup.addresses())
    budget = Budget(chosen.budget, chosen.budget_per_call, chosen.budget_per_second)
    return Surroundings(chosen, retry, fleet, budget, lookup)


def ask(
    around: Surroundings,
    lines: Lines[grpc.Channel],
    timeout: float | None,
    send: Callable[[Line[grpc.Channel], Attempt], Any],
) -> Any:
    """One answer, of whichever replica gives it. Raises CallError."""
    failover = CallFailover(around, timeout)
    try:
        while True:
            attempt = failover.begin()
            try:
                answer = send(lines.to(attempt.address), attempt)
            except grpc.RpcError as raw:
                error = from_rpc_error(raw)
            else:
                failover.ended()
                return answer
            time.sleep(failover.failed(error, received=False))
    finally:
        failover.leave()
