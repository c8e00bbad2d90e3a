"""The servers and how to connect to them: addresses, TLS, API key, channel options.

Invariant: an API key leaves this process over TLS or to a loopback address, never otherwise; a
Connection that would break this cannot be created.
"""

import ipaddress
import json
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc

from quire.clients.arguments import flag, items, kind, read_whole, show, text
from quire.clients.errors import OptionError

DEFAULT_ADDRESS = "127.0.0.1:50051"
_MAX_MESSAGE = 64 * 1024 * 1024
_KEEPALIVE_MS = 30_000  # above the 10 s that the server permits between pings
ChannelOptions = list[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class TLS:
    """TLS to the server. Fields are PEM files; root None: the system's authorities.

    cert and key go together and make it mutual. server_name replaces the name that the server's
    certificate is checked against (needed where addresses are bare IPs).
    """

    root: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        for name in ("root", "cert", "key"):
            path = getattr(self, name)
            if path is not None and not isinstance(path, str | Path):
                raise OptionError(f"tls.{name}: the path of a PEM file, not {kind(path)}")
        if self.server_name is not None:
            check_host("tls.server_name", text("tls.server_name", self.server_name))
        if (self.cert is None) != (self.key is None):
            missing = "key" if self.key is None else "cert"
            raise OptionError(f"tls.{missing}: is missing; cert and key go together")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files; OptionError names the one that cannot be read."""
        return grpc.ssl_channel_credentials(
            _read("root", self.root, b"CERTIFICATE"),
            _read("key", self.key, b"PRIVATE KEY"),
            _read("cert", self.cert, b"CERTIFICATE"),
        )


def _read(name: str, path: str | Path | None, held: bytes) -> bytes | None:
    """A file's bytes; held: what its PEM is to be."""
    if path is None:
        return None
    try:
        content = read_whole(Path(path))
    except OSError as error:
        raise OptionError(f"tls.{name}: cannot read {show(str(path))}: {error.strerror}") from None
    except ValueError:  # a zero byte, or half of a surrogate pair
        raise OptionError(f"tls.{name}: {show(str(path))} is not a path") from None
    if held + b"-----" not in content:
        raise OptionError(f"tls.{name}: {show(str(path))} holds no {held.decode()} in PEM")
    return content


def split_address(address: str) -> tuple[str, int]:
    """`HOST:PORT`, `[IPV6]:PORT` or `HOST` (port 50051) to host and port."""
    address = text("address", address)
    host, colon, port = address.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        host, port = address, "50051"
    host = host.removeprefix("[").removesuffix("]")
    digits = port.isascii() and port.isdecimal() and len(port) <= 5
    if not host or "/" in host or not digits or not 0 < int(port) < 65536:
        raise OptionError(f"address: {show(address)} is not HOST:PORT")
    check_host("address", host)
    return host, int(port)


_IN_HOSTS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")


def check_host(where: str, host: str) -> None:
    """Raises OptionError if it is neither a host name nor an IP address."""
    address, _, zone = host.partition("%")  # fe80::1%eth0
    with suppress(ValueError):
        ipaddress.ip_address(address)
        if set(zone) <= _IN_HOSTS:
            return
    labels = host.removesuffix(".").split(".")
    if not set(host) <= _IN_HOSTS or not all(0 < len(label) < 64 for label in labels):
        raise OptionError(
            f"{where}: {show(host)} is not a host name; write names in other scripts as xn--…"
        )


def is_loopback(host: str) -> bool:
    """Whether a host's name itself says that it is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def resolve(host: str, port: int) -> tuple[str, int]:
    """An IP address of a host, IPv4 preferred; OptionError where the name is unknown."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "no such name"
        raise OptionError(f"address: cannot resolve {host!r}: {why}") from None
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(found[0][4][0]), port


def _join(host: tuple[str, int]) -> str:
    name, port = host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def _tls(value: TLS | bool | None) -> TLS | None:
    if isinstance(value, TLS):
        return value
    if value is None:
        return None
    return TLS() if flag("tls", value) else None


class Connection:
    """Addresses and credentials, checked; makes targets, options and call metadata.

    Raises OptionError where no channel could be right.
    """

    def __init__(
        self,
        address: str | Sequence[str] = DEFAULT_ADDRESS,
        *,
        api_key: str | None = None,
        tls: TLS | bool = False,
    ) -> None:
        addresses = (
            [address] if isinstance(address, str) else items("address", address, "HOST:PORT")
        )
        if not addresses:
            raise OptionError("address: at least one is needed")
        self.hosts = [split_address(a) for a in addresses]
        self.tls = _tls(tls)
        self.api_key = api_key
        self.local = all(is_loopback(host) for host, _ in self.hosts)
        if api_key is not None:
            self._check_key(api_key)

    def _check_key(self, api_key: str) -> None:
        if not isinstance(api_key, str):
            raise OptionError(f"api_key: text, not {kind(api_key)}")
        printable = api_key.isascii() and api_key.isprintable()
        if not api_key or not printable or api_key != api_key.strip():
            raise OptionError("api_key: printable ASCII without spaces around it")
        if self.tls is None and not self.local:
            raise OptionError("api_key: sent over TLS or to a loopback address only; turn TLS on")

    def __str__(self) -> str:
        return ", ".join(_join(host) for host in self.hosts)

    @cached_property
    def target(self) -> str:
        """The name that gRPC resolves; several addresses become one target of literal IPs."""
        if len(self.hosts) == 1:
            return f"dns:///{self}"
        found = [resolve(host, port) for host, port in self.hosts]
        families = {ipaddress.ip_address(ip).version for ip, _ in found}
        if len(families) > 1:
            raise OptionError(f"address: {self} mixes IPv4 and IPv6; name servers of one family")
        if families == {6}:
            return "ipv6:" + ",".join(f"[{ip}]:{port}" for ip, port in found)
        return "ipv4:" + ",".join(f"{ip}:{port}" for ip, port in found)

    @property
    def options(self) -> ChannelOptions:
        """Channel options: round_robin, keepalive, message size, and no retries by gRPC itself."""
        service_config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
        options: ChannelOptions = [
            ("grpc.service_config", json.dumps(service_config)),
            ("grpc.enable_retries", 0),
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", _MAX_MESSAGE),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            # Channels of one process to one target would share a connection otherwise.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self.local:
            options.append(("grpc.enable_http_proxy", 0))
        name = self._name_to_check()
        if name is not None:
            options.append(("grpc.ssl_target_name_override", name))
        return options

    def _name_to_check(self) -> str | None:
        """The name that the certificates of all servers carry; None: the target's own."""
        if self.tls is None:
            return None
        if self.tls.server_name is None and len(self.hosts) > 1:
            return self.hosts[0][0]  # the only one: see _apart
        return self.tls.server_name

    def _apart(self) -> "list[Connection]":
        """One connection a server where certificates carry different names, else this one.

        A channel checks every server against one name, so that different names need a channel each.
        """
        if self.tls is None or self.tls.server_name is not None:
            return [self]
        if len({host.lower() for host, _ in self.hosts}) == 1:
            return [self]
        return [Connection(_join(h), api_key=self.api_key, tls=self.tls) for h in self.hosts]

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of each call: the API key, where there is one."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()

    def channels(self) -> list[grpc.Channel]:
        """Synchronous channels to the servers, which take turns; nothing is connected yet. One
        channel, unless TLS must check different names: then one per server."""
        return [connection._channel() for connection in self._apart()]

    def _channel(self) -> grpc.Channel:
        return self.channel_with(self.options)

    def channel_with(self, options: ChannelOptions) -> grpc.Channel:
        """One channel to all that the target names, with these options."""
        if self.tls is None:
            return grpc.insecure_channel(self.target, options=options)
        return grpc.secure_channel(self.target, self.tls.credentials(), options=options)

    def aio_channels(self) -> "list[grpc.aio.Channel]":
        """The same for asyncio; they belong to the running event loop."""
        return [connection._aio_channel() for connection in self._apart()]

    def _aio_channel(self) -> "grpc.aio.Channel":
        return self.aio_channel_with(self.options)

    def aio_channel_with(self, options: ChannelOptions) -> "grpc.aio.Channel":
        """The same for asyncio."""
        import grpc.aio

        if self.tls is None:
            return grpc.aio.insecure_channel(self.target, options=options)
        credentials = self.tls.credentials()
        return grpc.aio.secure_channel(self.target, credentials, options=options)
