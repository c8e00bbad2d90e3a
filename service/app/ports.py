"""The server's gRPC ports: where they listen, and the limits that gRPC itself enforces.

Invariant: the descriptors, streams and bytes that strangers can take are bounded, and enough
descriptors are left for files, metrics and the engine. gRPC drops calls by itself if too many wait
that the server has not seen: they end CANCELLED, without details and uncounted. That limit is set
so high that the server refuses calls before it is reached, with a status that says when to retry.
"""

import contextlib
import errno
import resource
import socket

import grpc

from quire.engine.errors import ConfigError
from quire.service.settings import ServiceConfig

MAX_METADATA = 16 << 10  # bytes
MAX_STREAMS = 10_000  # calls of one connection
MAX_CONNECTIONS = 4096  # of the main port
_BACKLOG = 1024  # connections of the OpenAI API that wait to be accepted
PROBES = 64  # connections of the port for health checks
PROBE_BYTES = 4096
_MAX_PENDING = 1 << 20  # calls that gRPC has and the server does not yet
_IDLE_MS = 300_000  # a connection without a call is closed
_HANDSHAKE_MS = 20_000
_UNASKED_SECONDS = 3600  # that a call may wait before we look at it
_BYTES_A_TOKEN = 64  # of a text prompt, generously; the rest of a message is small
_MIN_MESSAGE = 4 << 20
_NEVER_MS = (1 << 31) - 1  # what gRPC takes for never
_PING_ANSWER_MS = 20_000
_RESERVED = 96  # descriptors for files, metrics, the engine, event loop and gRPC's own
_MAX_DESCRIPTORS = 65_536


def max_message_bytes(max_model_len: int) -> int:
    """The largest request that gRPC takes in."""
    return max(_MIN_MESSAGE, max_model_len * _BYTES_A_TOKEN)


def raise_descriptors() -> int:
    """Take as many descriptors as this process may have; how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return soft if soft != resource.RLIM_INFINITY else _MAX_DESCRIPTORS


def max_connections(descriptors: int, *, probes: bool, http: bool = False) -> int:
    """Connections of the main port; with `http` the OpenAI API has as many. Raises ConfigError if
    there are not enough descriptors for any."""
    left = descriptors - _RESERVED - (PROBES if probes else 0)
    if left < 1:
        raise ConfigError(
            f"RLIMIT_NOFILE = {descriptors}: must be more than {descriptors - left}, or no "
            "descriptor is left for a connection (ulimit -n)"
        )
    return min(max(left // 2, 1) if http else left, MAX_CONNECTIONS)


def channel_options(
    max_message: int, connections: int, service: ServiceConfig
) -> list[tuple[str, int]]:
    """max_message: bytes of a request. connections: the most that may be open."""
    keepalive = round(service.keepalive_seconds * 1000)
    return [
        # A client whose machine or network is gone says nothing: ping it, or its stream runs on.
        ("grpc.keepalive_time_ms", keepalive or _NEVER_MS),
        ("grpc.keepalive_timeout_ms", min(keepalive or _NEVER_MS, _PING_ANSWER_MS)),
        ("grpc.http2.ping_timeout_ms", min(keepalive or _NEVER_MS, _PING_ANSWER_MS)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.so_reuseport", 0),  # two servers on one port would share its calls
        ("grpc.max_receive_message_length", max_message),
        ("grpc.max_metadata_size", MAX_METADATA),
        # gRPC refuses by chance between these two: so they are equal.
        ("grpc.absolute_max_metadata_size", MAX_METADATA),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        # Else gRPC opens its windows to megabytes, and takes in bodies that nobody asked for.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.server.max_pending_requests", _MAX_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),
        # Calls that a starved process has not got to after 30 s gRPC would cancel: no word of ours.
        ("grpc.server_max_unrequested_time_in_server", _UNASKED_SECONDS),
    ]


def bind(
    server: grpc.aio.Server,
    host: str,
    port: int,
    credentials: grpc.ServerCredentials | None,
    prefix: str = "",
) -> int:
    """Listen on every address of the host that this machine has, on one port; which it is.

    prefix: of the options host and port ("", "health_"). Raises ConfigError, which names the one to
    change, if the port is in use, or nothing of the host is here.
    """
    addresses = _addresses(host)
    for address in addresses:
        port = _bind_one(server, address, port, credentials, another_port(prefix))
    if not addresses:
        raise ConfigError(
            f"cannot listen on {_shown(host, port)}: no address of this machine; "
            f"{another_host(prefix)}"
        )
    return port


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets on every address of the host that this machine has, listening. Raises OSError."""
    sockets: list[socket.socket] = []
    try:
        for address in _addresses(host):
            sockets.append(_listen_one(address, port))
    except OSError:
        for opened in sockets:
            opened.close()
        raise
    if not sockets:
        raise OSError(errno.EADDRNOTAVAIL, "no address of this machine")
    return sockets


def _listen_one(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind((address, port))
        opened.listen(_BACKLOG)
    except OSError:
        opened.close()
        raise
    opened.setblocking(False)
    return opened


def elsewhere(error: OSError, prefix: str) -> str:
    """Advice if listening fails: another port, or another host if the host is at fault."""
    no_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
    return another_host(prefix) if no_host else another_port(prefix)


def another_port(prefix: str) -> str:
    """Advice if a port cannot be opened. prefix: of its option."""
    return f"choose another with {_flag(prefix + 'port')} (0 takes a free one)"


def another_host(prefix: str) -> str:
    """Advice if a host's address is not one of this machine. prefix: of its option."""
    return f"choose another with {_flag(prefix + 'host')}"


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _bind_one(
    server: grpc.aio.Server,
    host: str,
    port: int,
    credentials: grpc.ServerCredentials | None,
    hint: str,
) -> int:
    address = _shown(host, port)
    try:
        if credentials is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, credentials)
    except RuntimeError:
        bound = 0
    if not bound:
        raise ConfigError(
            f"cannot listen on {address}: the port is in use, or not allowed to this user; {hint}"
        )
    return bound


def _addresses(host: str) -> list[str]:
    """The addresses of a host name that this machine has; IPv4 first."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    named = {(family, str(where[0])) for family, _, _, _, where in found}
    if host == "localhost":  # some name tables know it by one family alone
        named |= {(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")}
    return [address for family, address in sorted(named) if _is_here(family, address)]


def _is_here(family: int, address: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
