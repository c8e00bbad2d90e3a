"""Who calls: API keys from a file of hashes, client certificates, or just an address.

The file holds one key a line, `NAME sha256:SALT:DIGEST`, both in hexadecimal; DIGEST is the SHA-256
of salt and key. Lines that begin with # and empty ones are skipped. `quire hash-key NAME` makes a
line. A key is random and long, so a fast hash is enough: nobody can try them all.

Invariant: no key is ever kept or logged in clear; a key is compared with each entry in constant
time, whichever matches; a file that cannot be read in force leaves the one before it in force.
"""

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from quire.engine.errors import ConfigError
from quire.service.errors import Refusal, abort, unauthenticated
from quire.service.security.reload import WatchedFiles

log = logging.getLogger("quire.service")

HEADER = "authorization"
MIN_KEY = 16  # characters
MAX_KEY = 512
OPEN_SERVICES = ("/grpc.health.v1.Health/",)
OWN_SERVICES = ("/quire.v1.InferenceService/",)  # the servicer asks there, and counts the answer
_SCHEME = "bearer "
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ENTRY = re.compile(r"sha256:([0-9a-f]{16,128}):([0-9a-f]{64})")
_SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. tenant: whose cache entries it may share, empty where nobody has to say who they
    are. client: whose limits and whose share of the machine it uses."""

    tenant: str
    client: str


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One line of the file."""

    name: str
    salt: bytes
    digest: bytes


class KeyRing:
    """The keys of one file."""

    def __init__(self, entries: Iterable[KeyEntry]) -> None:
        self._entries = tuple(entries)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: bytes) -> str | None:
        """The name of a key; always compares with all entries."""
        found = None
        for entry in self._entries:
            if hmac.compare_digest(_digest(entry.salt, key), entry.digest):
                found = entry.name
        return found


def read_keys(path: Path) -> KeyRing:
    """Raises ConfigError with the line at fault."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"api_keys = {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"api_keys = {path}: not UTF-8 text") from error
    entries: dict[str, KeyEntry] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        entry = _entry(words)
        if entry is None:
            raise ConfigError(
                f"api_keys = {path}: line {number}: not NAME sha256:SALT:DIGEST "
                "(`quire hash-key NAME` makes one)"
            )
        if entry.name in entries:
            raise ConfigError(f"api_keys = {path}: line {number}: {entry.name} comes twice")
        entries[entry.name] = entry
    if not entries:
        raise ConfigError(f"api_keys = {path}: holds no key: nobody could call")
    return KeyRing(entries.values())


def _entry(words: list[str]) -> KeyEntry | None:
    if len(words) != 2 or not _NAME.fullmatch(words[0]):
        return None
    match = _ENTRY.fullmatch(words[1])
    if match is None or len(match[1]) % 2:
        return None
    return KeyEntry(words[0], bytes.fromhex(match[1]), bytes.fromhex(match[2]))


def _digest(salt: bytes, key: bytes) -> bytes:
    return hashlib.sha256(salt + key).digest()


def new_key() -> str:
    """A key that nobody can guess: 256 random bits."""
    return "quire-" + secrets.token_urlsafe(32)


def make_entry(name: str, key: str) -> str:
    """The file's line for a key. Raises ConfigError for what cannot be one."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name {name!r}: 1 to 64 of A-Z a-z 0-9 . _ -")
    if not MIN_KEY <= len(key) <= MAX_KEY:
        raise ConfigError(f"the key has {len(key)} characters: {MIN_KEY} to {MAX_KEY} are needed")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError("the key: printable ASCII without spaces, as a header carries it")
    salt = secrets.token_bytes(_SALT_BYTES)
    return f"{name} sha256:{salt.hex()}:{_digest(salt, key.encode()).hex()}"


class Authenticator:
    """Tells who a call comes from. keys None: no key is asked for. certificates: clients have
    them."""

    def __init__(
        self, keys: "WatchedFiles[KeyRing] | None" = None, *, certificates: bool = False
    ) -> None:
        self._keys = keys
        self._certificates = certificates

    @property
    def required(self) -> bool:
        """Whether a call needs a key."""
        return self._keys is not None

    def caller(self, context: "grpc.aio.ServicerContext[Any, Any]") -> Caller:
        """Raises Refusal (UNAUTHENTICATED)."""
        if self._keys is not None:
            name = self.key_name(context.invocation_metadata())
            return Caller(f"key:{name}", f"key:{name}")
        certified = certificate_name(context.auth_context()) if self._certificates else ""
        if certified:
            return Caller(f"cert:{certified}", f"cert:{certified}")
        return Caller("", peer_address(context.peer()))

    def key_name(self, metadata: Any) -> str:
        """The name of the key in a call's metadata. Raises Refusal (UNAUTHENTICATED)."""
        assert self._keys is not None
        values = [value for name, value in metadata or () if name == HEADER]
        if not values:
            raise unauthenticated("an API key is needed: authorization: Bearer KEY")
        given = values[0]
        if len(values) > 1 or not isinstance(given, str) or not _is_bearer(given):
            raise unauthenticated("authorization must be one value: Bearer KEY")
        name = self._keys.value.find(given[len(_SCHEME) :].strip().encode())
        if name is None:
            raise unauthenticated("the API key is not known here")
        return name


def _is_bearer(value: str) -> bool:
    return value[: len(_SCHEME)].lower() == _SCHEME and len(value) <= len(_SCHEME) + MAX_KEY


def certificate_name(auth_context: Mapping[str, Iterable[bytes]]) -> str:
    """The common name of the client's certificate, or its first alternative name; else empty."""
    for field in ("x509_common_name", "x509_subject_alternative_name"):
        for value in auth_context.get(field, ()):
            if value:
                return value.decode("utf-8", "replace")
    return ""


def peer_address(peer: str) -> str:
    """gRPC's name of a peer without its port: all connections of a machine are one client."""
    kind, _, rest = peer.partition(":")
    return f"{kind}:{rest.rpartition(':')[0]}" if kind in ("ipv4", "ipv6") else peer


Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class Guard(grpc.aio.ServerInterceptor):
    """Asks for a key wherever the servicer does not: reflection, and methods that do not exist."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """The method's handler, or one that refuses."""
        found = await continuation(handler_call_details)
        if handler_call_details.method.startswith((*OPEN_SERVICES, *OWN_SERVICES)):
            return found
        try:
            self._authenticator.key_name(handler_call_details.invocation_metadata)
        except Refusal as refusal:
            return _refusing(found, refusal)
        return found


def _refusing(found: Any, refusal: Refusal) -> Any:
    """A handler of the same shape that ends every call with the refusal."""

    async def answer(_request: Any, context: Any) -> None:
        await abort(context, refusal)

    async def stream(_request: Any, context: Any) -> Any:
        await abort(context, refusal)
        yield b""

    if found is None:
        return grpc.unary_unary_rpc_method_handler(answer)
    if found.request_streaming and found.response_streaming:
        return grpc.stream_stream_rpc_method_handler(stream)
    if found.request_streaming:
        return grpc.stream_unary_rpc_method_handler(answer)
    if found.response_streaming:
        return grpc.unary_stream_rpc_method_handler(stream)
    return grpc.unary_unary_rpc_method_handler(answer)
