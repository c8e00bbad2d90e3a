"""Resolves the addresses that a caller gives into replicas, again and again.

Invariant: an IP address, and a name with one address, is one replica. A name with several (as a
headless service of Kubernetes has) is as many replicas. A name that cannot be resolved keeps its
last addresses, or is a replica that does not answer, so that it is named if none is left. Names are
looked up in the background; literal addresses never.
"""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

Resolver = Callable[[str, int], list[str]]
Spawn = Callable[[Callable[[], None]], object]
SOONEST = 1.0  # seconds between look-ups, however often replicas are lost


@dataclass(frozen=True, slots=True)
class Address:
    """A replica. name: HOST:PORT, as it is hashed and shown. host, port: the endpoint. tls_name:
    the name that its certificate must have, if that is not `host`."""

    name: str
    host: str
    port: int
    tls_name: str | None = None


def resolve(host: str, port: int) -> list[str]:
    """IP addresses of a name, IPv4 alone where there is any, so that no host counts twice."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    four = sorted({str(entry[4][0]) for entry in found if entry[0] == socket.AF_INET})
    return four or sorted({str(entry[4][0]) for entry in found})


def join(host: str, port: int) -> str:
    """HOST:PORT."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _in_background(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="quire-lookup", daemon=True).start()


class Lookup:
    """The replicas behind some hosts. Thread-safe."""

    def __init__(
        self,
        hosts: Sequence[tuple[str, int]],
        every: float,
        *,
        resolver: Resolver = resolve,
        clock: Callable[[], float] = time.monotonic,
        spawn: Spawn = _in_background,
    ) -> None:
        """every: seconds between look-ups."""
        self._hosts = list(dict.fromkeys(hosts))
        self._every, self._resolver, self._clock, self._spawn = every, resolver, clock, spawn
        self._known: dict[tuple[str, int], list[Address]] = {}
        self._names = any(not _literal(host) for host, _ in self._hosts)
        self._lock = threading.Lock()
        self._looked_at = clock()
        self._busy = self._lost = False

    def addresses(self) -> list[Address]:
        """Looks all up, here and now."""
        found = [address for host in self._hosts for address in self._find(*host)]
        return list({address.name: address for address in found}.values())

    def lost(self) -> None:
        """A replica is not where it was: look soon."""
        self._lost = True

    def refresh(self, found: Callable[[list[Address]], None]) -> None:
        """Start a look-up in the background if one is due. found: called with the result."""
        if not self._names:
            return
        with self._lock:
            waited = self._clock() - self._looked_at
            if self._busy or waited < (SOONEST if self._lost else self._every):
                return
            self._busy, self._lost = True, False

        def look() -> None:
            try:
                found(self.addresses())
            finally:
                with self._lock:
                    self._busy, self._looked_at = False, self._clock()

        self._spawn(look)

    def _find(self, host: str, port: int) -> list[Address]:
        name = join(host, port)
        if _literal(host):
            return [Address(name, host, port)]
        found: list[str] | None = None
        with suppress(OSError, UnicodeError):
            found = self._resolver(host, port)
        if found and len(found) > 1:
            self._known[host, port] = [Address(join(ip, port), ip, port, host) for ip in found]
        elif found or (host, port) not in self._known:
            self._known[host, port] = [Address(name, host, port)]
        return self._known[host, port]


def _literal(host: str) -> bool:
    """Whether the host needs no look-up."""
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
