"""The synchronous loop over a call with one answer, which another replica may give."""

import time
from collections.abc import Callable
from typing import Any

import grpc

from quire.clients.errors import from_rpc_error
from quire.clients.replicas.call_failover import Attempt, CallFailover
from quire.clients.replicas.channels import ChannelPool, ReplicaChannel
from quire.clients.replicas.shared_state import SharedState

Method = Callable[[ReplicaChannel[Any]], Any]


def ask(
    shared: SharedState,
    channels: ChannelPool[grpc.Channel],
    timeout: float | None,
    send: Callable[[ReplicaChannel[grpc.Channel], Attempt], Any],
) -> Any:
    """One answer, of whichever replica gives it. Raises CallError."""
    failover = CallFailover(shared, timeout)
    try:
        while True:
            attempt = failover.begin()
            try:
                answer = send(channels.to(attempt.address), attempt)
            except grpc.RpcError as raw:
                error = from_rpc_error(raw)
            else:
                failover.ended()
                return answer
            time.sleep(failover.failed(error, received=False))
    finally:
        failover.leave()
