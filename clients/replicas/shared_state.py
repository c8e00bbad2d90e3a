"""What all calls of a client with several replicas share."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import uniform as random_uniform

from quire.clients.connection import Connection
from quire.clients.replicas.addresses import Lookup, resolve
from quire.clients.replicas.budget import RetryBudget
from quire.clients.replicas.fleet import Fleet
from quire.clients.replicas.policy import ReplicaPolicy, as_replica_policy
from quire.clients.retry import RetryPolicy


@dataclass(frozen=True, slots=True)
class SharedState:
    """One a client. clock: seconds; uniform(low, high): the jitter of waiting."""

    policy: ReplicaPolicy
    retry: RetryPolicy
    fleet: Fleet
    budget: RetryBudget
    lookup: Lookup
    clock: Callable[[], float] = time.monotonic
    uniform: Callable[[float, float], float] = random_uniform


def shared_state(
    connection: Connection, policy: ReplicaPolicy | None, retry: RetryPolicy
) -> SharedState | None:
    """None: there is one address, and no replica policy, so there is nothing to choose."""
    if len(connection.hosts) == 1 and policy is None:
        return None
    chosen = as_replica_policy(policy)
    lookup = Lookup(connection.hosts, chosen.lookup_seconds, resolver=resolve)
    fleet = Fleet(chosen.routing)
    fleet.update(lookup.addresses())
    budget = RetryBudget(chosen.budget, chosen.budget_per_call, chosen.budget_per_second)
    return SharedState(chosen, retry, fleet, budget, lookup)
