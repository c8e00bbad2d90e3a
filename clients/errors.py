"""What a call can end with, as exceptions.

    ClientError
    ├── OptionError          an argument that cannot be right: nothing was sent
    └── CallError            the call ended with another status than OK
        ├── InvalidRequest   INVALID_ARGUMENT, NOT_FOUND, a message that is too large, …: asking
        │                    again gives the same answer
        ├── Overloaded       RESOURCE_EXHAUSTED: asking again later may succeed
        ├── Unavailable      UNAVAILABLE: nobody there, loading, draining or dead
        │   ├── NoReplica    several addresses, and none takes the call
        │   └── Broken       a stream broke, and does not go on elsewhere
        ├── Unauthenticated  UNAUTHENTICATED, PERMISSION_DENIED
        ├── DeadlineExceeded the deadline passed
        └── Cancelled        the call was cancelled, by either side

Invariant: every failure of a call leaves the client as one of these, with the status, the server's
words, and the rich details decoded where the server sent them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import grpc

OPERATORS_ONLY = "OPERATORS_ONLY"
"""The reason where something is for an operator's key alone."""

_DETAILS_KEY = "grpc-status-details-bin"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"


class ClientError(Exception):
    """Anything that this client raises on purpose."""


class OptionError(ClientError, ValueError):
    """An argument that cannot be right; nothing was sent."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that the server refused."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Details:
    """The rich details of a status; empty where the server sent none."""

    violations: tuple[Violation, ...] = ()
    reason: str = ""
    retry_after: float | None = None
    """Seconds after which the server would like to be asked again."""


class CallError(ClientError):
    """A call that ended with another status than OK."""

    def __init__(self, code: grpc.StatusCode, message: str, details: Details | None = None) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.details = details or Details()


class InvalidRequest(CallError):
    """The request itself is at fault."""


class Overloaded(CallError):
    """The server has no room; `details.retry_after` says when it may have."""


class Unavailable(CallError):
    """No server there, or one that is loading, draining or dead."""


class NoReplica(Unavailable):
    """None of several replicas takes the call; `faults` has the last fault of each, by address."""

    def __init__(self, message: str, faults: Mapping[str, str]) -> None:
        super().__init__(grpc.StatusCode.UNAVAILABLE, message)
        self.faults = dict(faults)


class Broken(Unavailable):
    """A call broke, and does not go on at another replica. `faults`: where it was, and how it ended
    there, by address. `often`: whether it broke as often as a call may."""

    def __init__(self, message: str, faults: Mapping[str, str], *, often: bool = False) -> None:
        super().__init__(grpc.StatusCode.UNAVAILABLE, message)
        self.faults = dict(faults)
        self.often = often


class Unauthenticated(CallError):
    """The credentials are missing or wrong."""


class DeadlineExceeded(CallError):
    """The deadline passed first."""


class Cancelled(CallError):
    """The call was cancelled."""


_BY_CODE: dict[grpc.StatusCode, type[CallError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Unauthenticated,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}

Metadata = Iterable[tuple[str, str | bytes]]
_TOO_LARGE = "message larger than max"  # gRPC's own words: room to come would not mend it


def call_error(code: grpc.StatusCode, message: str | None, trailers: Metadata | None) -> CallError:
    """The exception for a status and its trailing metadata."""
    words = message or "(no message)"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in words:
        return InvalidRequest(code, words, Details(reason="MESSAGE_TOO_LARGE"))
    return _BY_CODE.get(code, CallError)(code, words, read_details(trailers or ()))


def cancelled() -> CallError:
    """The exception of a call that its own client ended."""
    return call_error(grpc.StatusCode.CANCELLED, "cancelled by this client", None)


def from_rpc_error(error: grpc.RpcError) -> CallError:
    """The exception for an error raised by grpc (synchronous or aio)."""
    trailers = cast(Metadata | None, error.trailing_metadata())
    return call_error(error.code(), error.details(), trailers)


def read_details(trailers: Metadata) -> Details:
    """Decodes google.rpc.Status and the pushback trailer; what cannot be read is left out."""
    values = dict(trailers)
    pushback = _pushback_seconds(values.get(_PUSHBACK_KEY))
    packed = values.get(_DETAILS_KEY)
    if not isinstance(packed, bytes):
        return Details(retry_after=pushback)
    violations, reason, retry_info = _unpack(packed)
    return Details(violations, reason, retry_info if pushback is None else pushback)


def _pushback_seconds(value: str | bytes | None) -> float | None:
    """Milliseconds as text. Anything else, also a negative number, means: do not retry."""
    try:
        milliseconds = int(value) if value is not None else -1
    except ValueError:
        return None
    return milliseconds / 1000 if milliseconds >= 0 else None


def _unpack(packed: bytes) -> tuple[tuple[Violation, ...], str, float | None]:
    try:
        from google.protobuf.message import DecodeError
        from google.rpc import error_details_pb2 as details_pb2
        from google.rpc import status_pb2
    except ImportError:  # googleapis-common-protos is a convenience, not a condition
        return (), "", None
    violations: list[Violation] = []
    reason, retry_after = "", None
    try:
        status = status_pb2.Status.FromString(packed)
        for detail in status.details:
            if detail.Is(details_pb2.BadRequest.DESCRIPTOR):
                bad = details_pb2.BadRequest.FromString(detail.value)
                violations += [Violation(v.field, v.description) for v in bad.field_violations]
            elif detail.Is(details_pb2.ErrorInfo.DESCRIPTOR):
                reason = details_pb2.ErrorInfo.FromString(detail.value).reason
            elif detail.Is(details_pb2.RetryInfo.DESCRIPTOR):
                delay = details_pb2.RetryInfo.FromString(detail.value).retry_delay
                retry_after = delay.seconds + delay.nanos / 1e9
    except DecodeError:
        return (), "", None
    return tuple(violations), reason, retry_after
