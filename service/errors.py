"""The statuses with which calls are refused or ended: gRPC statuses with rich details.

Invariant: every status other than OK that this server sends on purpose is a `Refusal`, with a
google.rpc.ErrorInfo (reason, domain `quire`), a BadRequest if fields are at fault, and a RetryInfo
beside the trailer `grpc-retry-pushback-ms` if retrying later makes sense.
"""

import bisect
import ctypes
import itertools
from collections.abc import Mapping, Sequence
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
# Trailers share the client's limit for metadata, by default 8 KiB: the message, in which a byte
# that is not plain ASCII takes three, and the details, which are written in base64.
_MAX_MESSAGE = 1024  # bytes as they are sent
_MAX_DETAILS = 4096  # bytes
_MAX_VIOLATION = 1024  # bytes, of the details
_FRAME = 16  # bytes around a violation


class Violation(NamedTuple):
    """A field that cannot be as it is."""

    field: str
    description: str


class TooLong(Violation):
    """A prompt that leaves less room than is asked for, or none at all."""


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
        """The trailing metadata: rich details if the library is installed, and the pushback."""
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
            details.append(_bad_request(self.violations))
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


def _bad_request(violations: Sequence[Violation]) -> Any:
    """As many as there is room for; the last one tells how many were left out."""
    bad = error_details_pb2.BadRequest()
    room = _MAX_DETAILS - _MAX_MESSAGE - _MAX_VIOLATION
    for told, violation in enumerate(violations):
        field = clip(violation.field, _MAX_VIOLATION // 4)
        description = clip(violation.description, _MAX_VIOLATION // 2)
        room -= len(field.encode()) + len(description.encode()) + _FRAME
        if told == _MAX_VIOLATIONS or room < 0:
            more = f"{len(violations) - told} more faults are not told"
            bad.field_violations.add(field=field, description=more)
            break
        bad.field_violations.add(field=field, description=description)
    return bad


class OtherContext:
    """Takes the place of a gRPC context for a call over another protocol, which gets refusals as
    they are."""

    def span(self, code: grpc.StatusCode) -> tuple[str, Mapping[str, str | int]]:
        """The name of the call's trace, and what the protocol tells in it. code: its end."""
        raise NotImplementedError


async def abort(
    context: "grpc.aio.ServicerContext[Any, Any] | OtherContext", refusal: Refusal
) -> NoReturn:
    """End the call with the refusal's status."""
    forget_frames(refusal)
    if isinstance(context, OtherContext):
        raise refusal
    await context.abort(refusal.code, clip(refusal.message), refusal.trailers())
    raise AssertionError("abort raises")


def forget_frames(refusal: BaseException) -> None:
    """Drop the tracebacks of a refusal that was sent, and of its causes.

    Their frames hold the request and everything read from it, and one of them holds the refusal
    itself. So they would stay until garbage is collected, which takes long when there is much of
    it.
    """
    error: BaseException | None = refusal
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def clip(text: str, most: int = _MAX_MESSAGE) -> str:
    """As much of a text as fits into this many bytes, without half a character, on one line."""
    if len(text) <= most and text.isascii() and text.isprintable() and "%" not in text:
        return text
    flat = " ".join(text[: 4 * most].split())
    sizes = list(itertools.accumulate(map(_sent, flat)))
    if len(text) <= 4 * most and (not sizes or sizes[-1] <= most):
        return flat.encode("utf-8", "replace").decode()
    kept = bisect.bisect_right(sizes, most - _sent("…"))
    return flat[:kept].encode("utf-8", "replace").decode() + "…"


def _sent(character: str) -> int:
    """Bytes of a character in a status message: those beyond plain ASCII are written as %XX."""
    plain = " " <= character <= "~" and character != "%"
    return 1 if plain else 3 * len(character.encode("utf-8", "replace"))


def show(value: object) -> str:
    """A client's value as an error repeats it: quoted, and cut where it is long."""
    if isinstance(value, float):  # one of the contract's: 1.1, not 1.100000023841858
        shorter = (float(f"{value:.{digits}g}") for digits in (7, 8, 9))
        return str(next((one for one in shorter if ctypes.c_float(one).value == value), value))
    if not isinstance(value, str):
        return str(value)
    return repr(value if len(value) <= _MAX_SHOWN else value[:_MAX_SHOWN] + "…")


def invalid(violations: Sequence[Violation]) -> Refusal:
    """Fields that cannot be as they are. A prompt that is too long is told by a reason of its
    own, for programs that then shorten their conversation and ask again."""
    too_long = any(isinstance(one, TooLong) for one in violations)
    message = "; ".join(f"{field}: {text}" for field, text in violations[:_MAX_VIOLATIONS])
    return Refusal(
        grpc.StatusCode.INVALID_ARGUMENT,
        message,
        reason="CONTEXT_LENGTH_EXCEEDED" if too_long else "INVALID_FIELD",
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


def message_too_large(limit: int) -> Refusal:
    """gRPC has not taken the message in, and has said so itself, in its own words. Bytes."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"the message is larger than {limit} bytes",
        reason="MESSAGE_TOO_LARGE",
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


def prompts_waiting(waiting: int, asked: int, limit: int) -> Refusal:
    """The prompts that wait to be read are too large together. Bytes."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"prompts of {waiting} bytes wait to be read, this one has {asked}: at most {limit}",
        reason="QUEUE_FULL",
        retry_after=1.0,
    )


def calls_open(held: int, limit: int, retry_after: float) -> Refusal:
    """Calls that have been served and not been read take the room of this one."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"{held} completions are open, those included whose clients have yet to read them: "
        f"max_num_seqs + max_waiting = {limit}",
        reason="QUEUE_FULL",
        retry_after=retry_after,
    )


def not_read(why: str) -> Refusal:
    """The call was ended under a client that does not read."""
    return Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, f"ended: {why}", reason="NOT_READ")


def deadline_passed() -> Refusal:
    """The call's deadline has passed."""
    return Refusal(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "the call's deadline passed before it could begin",
        reason="DEADLINE_PASSED",
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
    """More calls have come than the server can handle."""
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


def shutting_down() -> Refusal:
    """The server leaves."""
    return unavailable("the server is shutting down", "DRAINING")


def internal(error_id: str) -> Refusal:
    """A fault of the server; the log has its cause under this id."""
    return Refusal(
        grpc.StatusCode.INTERNAL,
        f"a fault of the server ended this call; its log knows it as {error_id}",
        reason="FAULT",
    )
