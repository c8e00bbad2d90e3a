"""Sockets between nodes, and how they are named.

Invariant: a machine that has vanished without a word shows within ALIVE_SECONDS, whether anything
is said or not: the kernels of both sides ask one another. A process that is merely stopped is not
taken for lost: its kernel answers for it.
"""

import ipaddress
import socket

from quire.engine.errors import ConfigError

ALIVE_SECONDS = 10
_IDLE_SECONDS, _BETWEEN_SECONDS = 2, 2
_LISTENING = 64  # connections that the kernel keeps until they are taken


def kept_alive(connection: socket.socket) -> socket.socket:
    """The same socket with TCP keepalive, and without delaying small writes."""
    options = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ]
    probes = (ALIVE_SECONDS - _IDLE_SECONDS) // _BETWEEN_SECONDS
    for name, value in (
        ("TCP_KEEPIDLE", _IDLE_SECONDS),
        ("TCP_KEEPINTVL", _BETWEEN_SECONDS),
        ("TCP_KEEPCNT", probes),
        ("TCP_USER_TIMEOUT", ALIVE_SECONDS * 1000),  # of unacknowledged data
    ):
        if hasattr(socket, name):  # Linux has all of them
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    for option in options:
        connection.setsockopt(*option)
    return connection


def listen(address: str, port: int) -> socket.socket:
    """A non-blocking socket that listens on the address of one interface. Raises ConfigError."""
    where = f"master_addr = {address}, master_port = {port}"
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM
        )[0]
        if ipaddress.ip_address(str(place[0]).partition("%")[0]).is_unspecified:
            raise ConfigError(f"{where}: must be the address of one interface, not of all")
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(_LISTENING)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(f"{where}: node 0 cannot listen there: {error.strerror}") from error
    return listener


def host_of(connection: socket.socket) -> str:
    """The address of the other side, without its port."""
    return str(connection.getpeername()[0])
