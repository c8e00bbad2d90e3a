"""Authentication: API keys from a file of hashes, client certificates, or just an address.

Invariant: a call must present its key before any of its message is read, whatever method it names;
only health checks need none. No key is ever logged.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc

from quire.engine.errors import ConfigError
from quire.service.errors import Refusal, abort, unauthenticated, unavailable
from quire.service.security import certificates
from quire.service.security.keys import (
    MAX_KEY,
    MAX_PRIORITY,
    MIN_KEY,
    KeyEntry,
    KeyRing,
    make_entry,
    new_key,
    read_keys,
)
from quire.service.security.reload import WatchedFiles

__all__ = [
    "MAX_KEY",
    "MAX_PRIORITY",
    "MIN_KEY",
    "Authenticator",
    "Caller",
    "Guard",
    "KeyEntry",
    "KeyRing",
    "certificate_name",
    "make_entry",
    "new_key",
    "peer_address",
    "read_keys",
]

HEADER = "authorization"
OPEN_SERVICES = ("/grpc.health.v1.Health/",)
# Refused there, and counted.
OWN_SERVICES = ("/quire.v1.InferenceService/", "/vllm.grpc.engine.VllmEngine/")
_SCHEME = "bearer "
_MAX_KNOWN = 1024  # connections: each makes many calls
_MAX_SEARCHES = 64  # keys that wait to be compared with every line
_LOOPBACK = ("ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D", "unix:")


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller.

    tenant: whose cache entries it may share; empty if callers need not identify themselves. client:
    whose limits and share of the machine it uses. operator: may see what concerns all clients.
    max_priority: the highest priority that it may ask for.
    """

    tenant: str
    client: str
    operator: bool = False
    max_priority: int = 0


class Authenticator:
    """Tells who a call comes from. keys None: no key is asked for. certificates: clients have
    them."""

    def __init__(
        self,
        keys: "WatchedFiles[KeyRing] | None" = None,
        *,
        certificates: bool = False,
        max_priority: int = 0,
    ) -> None:
        """max_priority: of callers without a key, where none is asked for."""
        self._keys = keys
        self._certificates = certificates
        self._max_priority = max_priority
        self._searches = 0
        self._searcher = ThreadPoolExecutor(1, "quire-keys")

    @property
    def required(self) -> bool:
        """Whether a call needs a key."""
        return self._keys is not None

    def caller(self, context: "grpc.aio.ServicerContext[Any, Any]") -> Caller:
        """Raises Refusal (UNAUTHENTICATED)."""
        if self._keys is not None:
            entry = self._entry(context.invocation_metadata())
            name = f"key:{entry.name}"
            return Caller(name, name, entry.operator, entry.max_priority)
        if self._certificates:
            return self._certified(context.auth_context())
        return _addressed(context.peer(), self._max_priority)

    def _certified(self, auth_context: Mapping[str, Iterable[bytes]]) -> Caller:
        pem = next(iter(auth_context.get("x509_pem_cert", ())), b"")
        try:
            identity = certificates.identity(pem)
        except ConfigError:
            raise unauthenticated("the client's certificate cannot be read") from None
        client = certificate_name(auth_context) or identity
        return Caller(f"cert:{identity}", f"cert:{client}", max_priority=self._max_priority)

    def key_name(self, metadata: Any) -> str:
        """The name of the key in a call's metadata. Raises Refusal (UNAUTHENTICATED)."""
        return self._entry(metadata).name

    async def check(self, metadata: Any) -> None:
        """As `key_name`, and never holds the event loop: where a key has to be compared with many
        lines, a thread does that. Raises Refusal."""
        assert self._keys is not None
        key, ring = _presented(metadata), self._keys.value
        if ring.slow and not ring.remembers(key):
            if self._searches >= _MAX_SEARCHES:
                raise unavailable("too many unknown keys at once", "BUSY")
            self._searches += 1
            try:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._searcher, ring.entry, key)
            finally:
                self._searches -= 1
        self._entry(metadata)

    def _entry(self, metadata: Any) -> KeyEntry:
        assert self._keys is not None
        entry = self._keys.value.entry(_presented(metadata))
        if entry is None:
            raise unauthenticated("the API key is not known here")
        return entry


def _presented(metadata: Any) -> bytes:
    """The key that a call brings. Raises Refusal."""
    values = [value for name, value in metadata or () if name == HEADER]
    if not values:
        raise unauthenticated("an API key is needed: authorization: Bearer KEY")
    given = values[0]
    if len(values) > 1 or not isinstance(given, str) or not _is_bearer(given):
        raise unauthenticated("authorization must be one value: Bearer KEY")
    return given[len(_SCHEME) :].strip().encode()


def _is_bearer(value: str) -> bool:
    return value[: len(_SCHEME)].lower() == _SCHEME and len(value) <= len(_SCHEME) + MAX_KEY


def certificate_name(auth_context: Mapping[str, Iterable[bytes]]) -> str:
    """The common name of the client's certificate, or its first alternative name; else empty. For
    logs and limits: two certificates may have one name."""
    for field in ("x509_common_name", "x509_subject_alternative_name"):
        for value in auth_context.get(field, ()):
            if value:
                return value.decode("utf-8", "replace")
    return ""


@functools.lru_cache(_MAX_KNOWN)
def _addressed(peer: str, max_priority: int) -> Caller:
    """A caller who is only known by their address."""
    address = peer_address(peer)
    return Caller("", address, address.startswith(_LOOPBACK), max_priority)


def peer_address(peer: str) -> str:
    """gRPC's name of a peer without its port: all connections of a machine are one client."""
    kind, _, rest = peer.partition(":")
    return f"{kind}:{rest.rpartition(':')[0]}" if kind in ("ipv4", "ipv6") else peer


Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class Guard(grpc.aio.ServerInterceptor):
    """Checks the key of every call except health checks before its message is read, also for
    reflection and for methods that do not exist.

    A refused call of our own methods is passed on to rpc/call_guard.py, which answers and counts
    it.
    """

    def __init__(
        self,
        authenticator: Authenticator,
    ) -> None:
        self._authenticator = authenticator

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """The method's handler, or one that refuses."""
        method = handler_call_details.method
        if method.startswith(OPEN_SERVICES):
            return await continuation(handler_call_details)
        found = await continuation(handler_call_details)
        try:
            await self._authenticator.check(handler_call_details.invocation_metadata)
        except Refusal as refusal:
            own = found is not None and method.startswith(OWN_SERVICES)
            return found if own and refusal.reason == "UNAUTHENTICATED" else _refusing(refusal)
        return found


def _refusing(refusal: Refusal) -> Any:
    """A handler that ends every call with the refusal. It takes a stream, as every method may on
    the wire, because then nothing of the message is read before the handler asks for it."""

    async def stream(_requests: Any, context: Any) -> Any:
        await abort(context, refusal)
        yield b""

    return grpc.stream_stream_rpc_method_handler(stream)
