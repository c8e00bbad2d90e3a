"""Hosts and ports: which of them others can reach, and which are the same place."""

import ipaddress
from collections.abc import Iterable

from quire.engine.errors import ConfigError

_EVERYWHERE = {"0.0.0.0", "::"}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_address(host: str) -> bool:
    """Whether it is an address, and no name."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def refuse_shared_ports(ports: Iterable[tuple[str, str, int]]) -> None:
    """Raises ConfigError for one port that is to be two things: whichever came second would go
    without. ports: option, host and number of each that is listened on."""
    taken: dict[int, list[tuple[str, str]]] = {}
    for name, host, port in ports:
        for other, its_host in taken.setdefault(port, []):
            if _meet(host, its_host):
                flag = "--" + name.replace("_", "-")
                rest = " (0: no OpenAI API)" if name == "http_port" else ""
                raise ConfigError(
                    f"{other} = {port} and {name} = {port}: one port cannot be both; choose "
                    f"another {flag}{rest}"
                )
        taken[port].append((name, host))


def _meet(host: str, other: str) -> bool:
    """Whether a port of both is one port."""
    names = {name.strip("[]") for name in (host, other)}
    local = "localhost" in names and all(map(is_loopback, names))
    return len(names) == 1 or bool(names & _EVERYWHERE) or local
