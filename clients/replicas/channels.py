"""One channel per replica, opened when it is first needed.

Invariant: each replica has a channel of its own, which watches its health (grpc.health.v1): where
it says NOT_SERVING, as a server that loads or drains does, new calls fail here, without being sent,
and calls under way go on. A replica that answers nothing for 20 seconds counts as gone.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Generic, TypeVar

import grpc

from quire.clients.connection import ChannelOptions, Connection
from quire.clients.errors import call_error
from quire.clients.replicas.addresses import Address, join
from quire.v1 import inference_pb2_grpc as pb_grpc

Channel = TypeVar("Channel")
_ONLY = ""  # no replica has this name
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],  # the policy that heeds health; of one address
    "healthCheckConfig": {"serviceName": ""},
}
_OPTIONS: dict[str, Any] = {
    "grpc.service_config": json.dumps(_SERVICE_CONFIG),
    "grpc.keepalive_time_ms": 15_000,  # above the 10 s that the server permits between pings
    "grpc.keepalive_timeout_ms": 5_000,
    # gRPC's own probes of the bandwidth are pings: keepalive waits for their answers, or for room.
    "grpc.http2.ping_timeout_ms": 20_000,
    "grpc.http2.max_pings_without_data": 0,
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.min_reconnect_backoff_ms": 2_000,  # what an attempt may take: a far host's handshakes
    "grpc.max_reconnect_backoff_ms": 3_000,
}


class ReplicaChannel(Generic[Channel]):
    """A channel, and the stubs over it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.stub: Any = pb_grpc.InferenceServiceStub(channel)

    @property
    def health(self) -> Any:
        """The stub of grpc.health.v1."""
        from grpc_health.v1 import health_pb2_grpc

        return health_pb2_grpc.HealthStub(self.channel)


class ChannelPool(Generic[Channel]):
    """The channels of one client. open_channel: creates a channel to one address. only: the channel
    of a client that has no replicas to choose from."""

    def __init__(
        self,
        connection: Connection,
        open_channel: Callable[[Connection, ChannelOptions], Channel],
        only: Channel | None = None,
    ) -> None:
        self._connection = connection
        self._open_channel = open_channel
        self._channels: dict[str, ReplicaChannel[Channel]] = (
            {} if only is None else {_ONLY: ReplicaChannel(only)}
        )
        self._closed = False

    @property
    def only(self) -> ReplicaChannel[Channel]:
        """The channel to the one server. Raises Cancelled after `close`."""
        return self._unless_closed(self._channels.get(_ONLY))

    def to(self, address: Address) -> ReplicaChannel[Channel]:
        """The channel to a replica. Racing callers may each make one, of which one is kept. Raises
        Cancelled after `close`."""
        replica = self._channels.get(address.name)
        if replica is None and not self._closed:
            replica = self._channels.setdefault(address.name, ReplicaChannel(self._open(address)))
        return self._unless_closed(replica)

    def _unless_closed(self, replica: ReplicaChannel[Channel] | None) -> ReplicaChannel[Channel]:
        if self._closed or replica is None:
            raise call_error(grpc.StatusCode.CANCELLED, "this client is closed", None)
        return replica

    def _open(self, address: Address) -> Channel:
        tls = self._connection.tls
        if tls is not None and tls.server_name is None and address.tls_name is not None:
            tls = replace(tls, server_name=address.tls_name)
        one = Connection(
            join(address.host, address.port), api_key=self._connection.api_key, tls=tls or False
        )
        options = [(name, value) for name, value in one.options if name not in _OPTIONS]
        return self._open_channel(one, [*options, *_OPTIONS.items()])

    def drop(self, names: Iterable[str]) -> list[Channel]:
        """Forget replicas; returns their channels, for closing."""
        channels = [self._channels.pop(name, None) for name in names]
        return [replica.channel for replica in channels if replica is not None]

    def close(self) -> list[Channel]:
        """Close all channels; no new ones are opened."""
        self._closed = True
        return self.drop(list(self._channels))
