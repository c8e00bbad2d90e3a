"""Where the servers are, and how to speak to them: addresses, TLS, API key, channel options.

Invariant: an API key leaves this process over TLS or to a loopback address, never otherwise; a
Connection that would break this cannot be made.
"""

import ipaddress
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc

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

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files; OptionError names the one that cannot be read."""
        if (self.cert is None) != (self.key is None):
            raise OptionError("tls: cert and key go together")
        return grpc.ssl_channel_credentials(
            _read("root", self.root), _read("key", self.key), _read("cert", self.cert)
        )


def _read(name: str, path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise OptionError(f"tls {name}: cannot read {path}: {error.strerror}") from None


def split_address(address: str) -> tuple[str, int]:
    """`HOST:PORT`, `[IPV6]:PORT` or `HOST` (port 50051) to host and port."""
    host, colon, port = address.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        host, port = address, "50051"
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise OptionError(f"address: {address!r} is not HOST:PORT")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very name."""
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
    except OSError as error:
        raise OptionError(f"address: cannot resolve {host!r}: {error.strerror}") from None
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(found[0][4][0]), port


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
        addresses = [address] if isinstance(address, str) else list(address)
        if not addresses:
            raise OptionError("address: at least one is needed")
        self.hosts = [split_address(a) for a in addresses]
        self.tls = TLS() if tls is True else tls or None
        self.api_key = api_key
        self.local = all(is_loopback(host) for host, _ in self.hosts)
        if api_key is not None:
            self._check_key(api_key)

    def _check_key(self, api_key: str) -> None:
        if not api_key.isascii() or not api_key.isprintable() or api_key != api_key.strip():
            raise OptionError("api_key: printable ASCII without spaces around it")
        if self.tls is None and not self.local:
            raise OptionError("api_key: sent over TLS or to a loopback address only; turn TLS on")

    def __str__(self) -> str:
        return ", ".join(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in self.hosts)

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
        """Channel options: round_robin, keepalive, message size, no retries behind our back."""
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
        name = self.tls.server_name if self.tls else None
        if name is None and self.tls and len(self.hosts) > 1:
            name = self.hosts[0][0]
        if name is not None:
            options.append(("grpc.ssl_target_name_override", name))
        return options

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of each call: the API key, where there is one."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()

    def channel(self) -> grpc.Channel:
        """A synchronous channel; nothing is connected yet."""
        if self.tls is None:
            return grpc.insecure_channel(self.target, options=self.options)
        return grpc.secure_channel(self.target, self.tls.credentials(), options=self.options)

    def aio_channel(self) -> "grpc.aio.Channel":
        """An asyncio channel; belongs to the running event loop."""
        import grpc.aio

        if self.tls is None:
            return grpc.aio.insecure_channel(self.target, options=self.options)
        credentials = self.tls.credentials()
        return grpc.aio.secure_channel(self.target, credentials, options=self.options)
