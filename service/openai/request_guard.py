"""Checks of an HTTP request before its body is read: header size, host, key.

Invariant: a caller without a key costs no more than its headers, over HTTP as over gRPC; a web page
that reaches this server under a name of its own (DNS rebinding) gets no answer.
"""

import ipaddress
import re
from collections.abc import Sequence
from typing import Any, cast

from quire.service.errors import Refusal
from quire.service.hosts import is_loopback
from quire.service.openai import problems
from quire.service.openai.connection import MAX_HEADER_BYTES
from quire.service.openai.http_context import HttpContext
from quire.service.rpc.call_guard import CallGuard
from quire.service.security.auth import Authenticator

_HOST = re.compile(r"(\[(?P<address>[^\]]*)\]|(?P<name>[^:@\[\]]*))(:[0-9]*)?")


class AllowedHosts:
    """The host names under which the server may be called."""

    def __init__(self, listening: str, names: Sequence[str], *, guarded: bool) -> None:
        """listening: the address. guarded: every caller authenticates, which a web page cannot do
        through its visitor's browser alone."""
        self._here = is_loopback(listening)
        self._names = {name.strip("[]").lower() for name in names}
        self._any = "*" in names or (guarded and not self._here)

    def check(self, host: str) -> None:
        """The header `host`. Raises Refusal."""
        if self._any:
            return
        name = _without_port(host).lower()
        if name in self._names or name == "localhost":
            return
        address = _address(name)
        if address is None or (self._here and not address.is_loopback):
            raise problems.foreign_host(host)


class RequestGuard:
    """The guard of one server."""

    def __init__(
        self, hosts: AllowedHosts, authenticator: Authenticator, call_guard: CallGuard
    ) -> None:
        self._hosts = hosts
        self._authenticator = authenticator
        self._call_guard = call_guard

    def check(self, context: HttpContext) -> None:
        """Check header size and host. Raises Refusal."""
        metadata = context.invocation_metadata()
        size = sum(len(name) + len(value) for name, value in metadata)
        if size > MAX_HEADER_BYTES:
            raise problems.headers_too_large(size, MAX_HEADER_BYTES)
        self._hosts.check(context.headers.get("host", ""))

    async def check_key(self, context: HttpContext) -> None:
        """Check the key, where keys are required. Raises Refusal."""
        if self._authenticator.required:
            await self._authenticator.check(context.invocation_metadata())

    def refused(self, context: HttpContext, refusal: Refusal, method: str) -> None:
        """The request ends before any call: count it for the method, and log it."""
        self._call_guard.on_refused(method, cast(Any, context), refusal)


def _without_port(host: str) -> str:
    """Empty where it is no host: what stands before an @ in a target's is none."""
    found = _HOST.fullmatch(host)
    return "" if found is None else found["address"] or found["name"] or ""


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
