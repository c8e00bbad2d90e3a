"""What a call is refused or ended with: a gRPC status with rich details.

Invariant: every status other than OK that this server sends on purpose is a `Refusal`, with a
google.rpc.ErrorInfo (reason, domain `quire`), a BadRequest where fields are at fault, and a
RetryInfo beside the trailer `grpc-retry-pushback-ms` where asking again later makes sense.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import grpc

try:
    from google.protobuf import any_pb2
    from google.rpc import error_details_pb2, status_pb2
except ImportError:  # googleapis-common-protos comes with grpcio-status, which is optional
    error_details_pb2 = None

DOMAIN = "quire"
PUSHBACK = "grpc-retry-pushback-ms"
_DETAILS = "grpc-status-details-bin"
_MAX_SHOWN = 80  # characters of a client's value that an error repeats
_MAX_VIOLATIONS = 16
_MAX_MESSAGE = 1024  # bytes; trailers share the client's limit for metadata


class Violation(NamedTuple):
    """A field that cannot be as it is."""

    field: str
    description: str


class Refusal(Exception):
    """A call ends with this status."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str,
        violations: Sequence[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        """retry_after: seconds after which asking again makes sense."""
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.violations = tuple(violations)
        self.retry_after = retry_after

    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        """The trailing metadata: rich details where the library is there, and the pushback."""
        trailers: list[tuple[str, str | bytes]] = []
        packed = self._details()
        if packed is not None:
            trailers.append((_DETAILS, packed))
        if self.retry_after is not None:
            trailers.append((PUSHBACK, str(max(1, round(self.retry_after * 1000)))))
        return tuple(trailers)

    def _details(self) -> bytes | None:
        if error_details_pb2 is None:
            return None
        status = status_pb2.Status(code=self.code.value[0], message=clip(self.message))
        details: list[Any] = [error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN)]
        if self.violations:
            bad = error_details_pb2.BadRequest()
            for violation in self.violations[:_MAX_VIOLATIONS]:
                bad.field_violations.add(
                    field=clip(violation.field), description=clip(violation.description)
                )
            details.append(bad)
        if self.retry_after is not None:
            info = error_details_pb2.RetryInfo()
            info.retry_delay.FromNanoseconds(int(self.retry_after * 1e9))
            details.append(info)
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        packed_status: bytes = status.SerializeToString()
        return packed_status


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", refusal: Refusal) -> NoReturn:
    """End the call with the refusal's status."""
    await context.abort(refusal.code, clip(refusal.message), refusal.trailers())
    raise AssertionError("abort raises")


def clip(text: str) -> str:
    """At most _MAX_MESSAGE bytes, without half a character, on one line."""
    flat = " ".join(text.split())
    raw = flat.encode("utf-8", "replace")
    if len(raw) <= _MAX_MESSAGE:
        return raw.decode()
    return raw[: _MAX_MESSAGE - 3].decode("utf-8", "ignore") + "…"


def show(value: object) -> str:
    """A client's value as an error repeats it: quoted, and cut where it is long."""
    if not isinstance(value, str):
        return str(value)
    return repr(value if len(value) <= _MAX_SHOWN else value[:_MAX_SHOWN] + "…")


def invalid(violations: Sequence[Violation]) -> Refusal:
    """Fields that cannot be as they are."""
    message = "; ".join(f"{field}: {text}" for field, text in violations[:_MAX_VIOLATIONS])
    return Refusal(
        grpc.StatusCode.INVALID_ARGUMENT,
        message,
        reason="INVALID_FIELD",
        violations=violations,
    )


def invalid_field(field: str, description: str) -> Refusal:
    """One field that cannot be as it is."""
    return invalid([Violation(field, description)])


def malformed() -> Refusal:
    """The bytes are not the message they should be."""
    return Refusal(
        grpc.StatusCode.INVALID_ARGUMENT, "the message cannot be decoded", reason="MALFORMED"
    )


def unknown_model(asked: str, served: str) -> Refusal:
    """Another model than the served one was asked for."""
    return Refusal(
        grpc.StatusCode.NOT_FOUND,
        f"model {show(asked)} is not served here; {show(served)} is",
        reason="UNKNOWN_MODEL",
        violations=[Violation("model", f"served: {show(served)}")],
    )


def queue_full(waiting: int, limit: int, retry_after: float) -> Refusal:
    """No room to wait."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"the queue is full: {waiting} requests wait, max_waiting = {limit}",
        reason="QUEUE_FULL",
        retry_after=retry_after,
    )


def tokens_waiting(waiting: int, asked: int, limit: int, retry_after: float) -> Refusal:
    """The prompts that wait are too long together."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"prompts of {waiting} tokens wait, this one has {asked}: max_waiting_tokens = {limit}",
        reason="QUEUE_FULL",
        retry_after=retry_after,
    )


def queue_too_long(estimate: float, limit: float, option: str, retry_after: float) -> Refusal:
    """It could not start in time. Seconds; option: what sets the limit."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"could start in about {estimate:.3g} s, and {option} allows {max(limit, 0.0):.3g} s",
        reason="QUEUE_TOO_LONG",
        retry_after=retry_after,
    )


def rate_limited(what: str, rate: float, retry_after: float) -> Refusal:
    """This client has used its share of requests or tokens."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"this client's {what} are limited: rate_limit_{what} = {rate:g} a second",
        reason="RATE_LIMITED",
        retry_after=retry_after,
    )


def too_many_streams(limit: int, retry_after: float) -> Refusal:
    """This client has as many calls open as it may."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"this client has {limit} calls open: max_streams_per_client = {limit}",
        reason="TOO_MANY_STREAMS",
        retry_after=retry_after,
    )


def slow_request(retry_after: float) -> Refusal:
    """The request took longer to come in than the server keeps room for it."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the request came in too slowly: others need the room",
        reason="SLOW_REQUEST",
        retry_after=retry_after,
    )


def too_many_calls(limit: int, retry_after: float) -> Refusal:
    """More calls have come than the server can look at."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"{limit} calls wait to be read",
        reason="TOO_MANY_CALLS",
        retry_after=retry_after,
    )


def unauthenticated(why: str) -> Refusal:
    """The credentials are missing or wrong."""
    return Refusal(grpc.StatusCode.UNAUTHENTICATED, why, reason="UNAUTHENTICATED")


def unavailable(why: str, reason: str) -> Refusal:
    """Not now, not here: loading, draining or dead."""
    return Refusal(grpc.StatusCode.UNAVAILABLE, why, reason=reason)


def internal(error_id: str) -> Refusal:
    """A fault of the server; its cause stands in the log, by the id."""
    return Refusal(
        grpc.StatusCode.INTERNAL,
        f"a fault of the server ended this call; its log knows it as {error_id}",
        reason="FAULT",
    )
