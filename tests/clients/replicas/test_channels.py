"""What the connection to a replica is asked of gRPC."""

from typing import Any

import pytest

from quire.clients.connection import ChannelOptions, Connection
from quire.clients.errors import Cancelled
from quire.clients.replicas.addresses import Address
from quire.clients.replicas.channels import ChannelPool

ADDRESS = Address("a.example:1", "a.example", 1)


class Channel:
    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_options: None


def options_of_a_line() -> dict[str, Any]:
    opened: list[ChannelOptions] = []

    def open_channel(_connection: Connection, options: ChannelOptions) -> Channel:
        opened.append(options)
        return Channel()

    ChannelPool(Connection("a.example:1"), open_channel).to(ADDRESS)
    (options,) = opened
    assert len(dict(options)) == len(options)
    return dict(options)


def test_a_client_that_is_closed_has_no_channel_and_opens_none() -> None:
    """What it opened then, nobody closed."""
    opened: list[ChannelOptions] = []

    def open_channel(_connection: Connection, options: ChannelOptions) -> Channel:
        opened.append(options)
        channels.close()  # as another thread may, while this one opens a channel
        return Channel()

    channels = ChannelPool(Connection("a.example:1"), open_channel)
    for _ in range(2):
        with pytest.raises(Cancelled, match="this client is closed"):
            channels.to(ADDRESS)
        channels.close()
    assert len(opened) == 1


def test_a_replica_that_says_nothing_is_gone_after_20_seconds() -> None:
    """A stream of a server that was stopped went on after a minute: a probe of gRPC's own was
    unanswered, and keepalive's ping waited for it."""
    options = options_of_a_line()
    idle, answer = (options[f"grpc.keepalive_{name}_ms"] for name in ("time", "timeout"))
    assert idle + answer == options["grpc.http2.ping_timeout_ms"] == 20_000
    assert options["grpc.http2.max_pings_without_data"] == 0


def test_a_far_replica_has_time_for_its_handshakes() -> None:
    """gRPC gives an attempt as long as it leaves between two. From 0.2 s a replica at 0.8 s was
    none: `connection attempt timed out before receiving SETTINGS frame`."""
    assert options_of_a_line()["grpc.min_reconnect_backoff_ms"] >= 2_000
