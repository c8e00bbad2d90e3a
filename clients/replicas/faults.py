"""What the end of a call says about the replica, and whether another one may be tried.

Invariant: a call that a replica may have begun to work on counts as broken, never as refused. So a
request that kills whatever serves it is tried as often as a stream may break, and no more.
"""

import enum

import grpc

from quire.clients.errors import CallError, InvalidRequest, Overloaded, Unavailable


class Kind(enum.Enum):
    """How a call failed."""

    ABSENT = "absent"
    """Nothing was sent: nobody there, or somebody who does not speak gRPC, or is not ready."""
    REFUSED = "refused"
    """The replica takes no calls now, or not these."""
    BUSY = "busy"
    """It has no room, and may say when it will have."""
    BROKEN = "broken"
    """It may have begun, and has gone."""
    FINAL = "final"
    """The same would come of it anywhere, or the caller has ended it."""


_NOT_TAKING = ("LOADING", "DRAINING")  # reasons of a server that has not begun
_NEVER_SENT = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "backend unhealthy",
    "errors resolving",
    "DNS resolution failed",
    "Name resolution failure",
    "empty address list",
)
_RESET = ("RST_STREAM", "Stream removed", "Socket closed", "onnection reset", "GOAWAY")
_CLOSED_HERE = "Channel closed!"  # by this client
_RESET_CODES = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)


def kind_of(error: CallError, received: bool) -> Kind:
    """received: whether anything of the call has come from this replica."""
    if isinstance(error, Unavailable):
        return _of_unavailable(error, received)
    if _CLOSED_HERE in error.message:
        return Kind.FINAL
    if error.code in _RESET_CODES and not error.details.reason and _says(error, _RESET):
        return Kind.BROKEN
    if received:
        return Kind.FINAL
    if isinstance(error, Overloaded):
        return Kind.BUSY
    if isinstance(error, InvalidRequest) and error.code is grpc.StatusCode.UNIMPLEMENTED:
        return Kind.REFUSED  # gRPC, but not this service
    return Kind.FINAL


def _of_unavailable(error: CallError, received: bool) -> Kind:
    if received:
        return Kind.BROKEN
    if error.details.reason in _NOT_TAKING:
        return Kind.REFUSED
    return Kind.ABSENT if _says(error, _NEVER_SENT) else Kind.BROKEN


def _says(error: CallError, signs: tuple[str, ...]) -> bool:
    return any(sign in error.message for sign in signs)


def speaks_no_grpc(message: str) -> bool:
    """Whether gRPC met another protocol: HTTP/1, or over TLS a server that agrees to no HTTP/2."""
    return any(sign in message for sign in ("http1", "ettings frame", "SETTINGS frame", "ALPN"))


def told(error: CallError) -> str:
    """The end in a few words, for an error that names several replicas."""
    if error.code is grpc.StatusCode.UNIMPLEMENTED:
        return "it speaks gRPC, and not quire.v1"
    if speaks_no_grpc(error.message):
        return "what listens there is not gRPC"
    message = error.message.partition("; last error: ")[2] or error.message
    return message if isinstance(error, Unavailable) else f"{error.code.name}: {message}"
