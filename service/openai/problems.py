"""Refusals over HTTP: a status, and an error of the shape that the path's clients read.

Invariant: the messages are the same as over gRPC; only the fields have HTTP's names.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from starlette.responses import Response

from quire.clients.openai import anthropic_errors, errors
from quire.clients.openai.faults import BadBody, joined
from quire.clients.openai.field_names import Names
from quire.service.errors import Refusal, Violation, clip, forget_frames, invalid, show
from quire.service.openai.http_context import is_messages

_Code = grpc.StatusCode
Shape = Callable[[int, str, str, str | None], dict[str, Any]]  # status, message, reason, field
_RETRY_SECONDS = 1.0  # where nothing better is known: the server is loading or leaving


@dataclass(frozen=True, slots=True)
class Problem:
    """A response that refuses a request. told: with an `error`. headers: beside Content-Type."""

    status: int
    told: Mapping[str, Any]
    headers: Mapping[str, str]

    @property
    def body(self) -> bytes:
        """JSON."""
        return json.dumps(self.told, ensure_ascii=False).encode("utf-8", "replace")


def shape_at(path: str) -> Shape:
    """The one of a path's errors."""
    return anthropic_errors.told if is_messages(path) else errors.told


def problem(refusal: Refusal, shape: Shape = errors.told) -> Problem:
    """The refusal's fields have HTTP's names already (see `translated`)."""
    forget_frames(refusal)
    status = errors.status_of(refusal.code.name, refusal.reason)
    param = refusal.violations[0].field if refusal.violations else None
    told = shape(status, clip(refusal.message, 4096), refusal.reason, param)
    return Problem(status, told, _headers(status, refusal.retry_after))


def response(refusal: Refusal, path: str) -> Response:
    """The whole answer of a path."""
    told = problem(refusal, shape_at(path))
    return Response(
        told.body, told.status, headers=dict(told.headers), media_type="application/json"
    )


def translated(refusal: Refusal, names: Names) -> Refusal:
    """The same refusal with the field names of an HTTP client."""
    if not refusal.violations:
        return refusal
    faults = names.faults(refusal.violations)
    message = refusal.message
    if refusal.code is _Code.INVALID_ARGUMENT:
        message = joined(faults)
    return Refusal(
        refusal.code,
        message,
        reason=refusal.reason,
        violations=[Violation(*fault) for fault in faults],
        retry_after=refusal.retry_after,
    )


def refused(bad: BadBody) -> Refusal:
    """A body that is no request."""
    forget_frames(bad)
    return invalid([Violation(*fault) for fault in bad.faults])


def _headers(status: int, retry_after: float | None) -> dict[str, str]:
    if status == 401:
        return {"www-authenticate": "Bearer"}
    if status == 503 and retry_after is None:
        retry_after = _RETRY_SECONDS
    if retry_after is None:
        return {}
    milliseconds = max(1, math.ceil(retry_after * 1000))
    return {
        "retry-after": str(max(1, math.ceil(retry_after))),
        "retry-after-ms": str(milliseconds),
    }


# ------------------------------------------------------------ what HTTP alone can get wrong


def no_such_path(path: str) -> Refusal:
    """Nothing is answered there."""
    hint = "" if path.startswith("/v1/") else " (a client's base URL ends in /v1)"
    told = f"there is nothing at {show(path)}{hint}"
    return Refusal(_Code.NOT_FOUND, told, reason="UNKNOWN_PATH")


def nothing_stored(path: str) -> Refusal:
    """What OpenAI's API has under a response's own path is of responses that it keeps."""
    told = f"there is nothing at {show(path)}: responses are not stored here"
    return Refusal(_Code.NOT_FOUND, told, reason="UNKNOWN_PATH")


def wrong_method(method: str, path: str) -> Refusal:
    """GET where POST is meant, or the other way round."""
    return Refusal(_Code.UNIMPLEMENTED, f"{show(method)} is not for {show(path)}", reason="METHOD")


def foreign_host(host: str) -> Refusal:
    """A web page may have been led here by a name that its owner points at this machine."""
    return Refusal(
        _Code.PERMISSION_DENIED,
        f"host: {show(host)}: is no name of this server (--http-names adds one)",
        reason="FOREIGN_HOST",
    )


def headers_too_large(size: int, limit: int) -> Refusal:
    """Bytes."""
    return Refusal(
        _Code.RESOURCE_EXHAUSTED,
        f"headers of {size} bytes: at most {limit}",
        reason="HEADERS_TOO_LARGE",
    )


def not_json(content_type: str) -> Refusal:
    """Any other type, a web page may send without asking."""
    return Refusal(
        _Code.INVALID_ARGUMENT,
        f"content-type: {show(content_type)}: must be application/json",
        reason="CONTENT_TYPE",
    )


def not_utf8(content_type: str) -> Refusal:
    """For a body that is not UTF-8, but otherwise might be JSON."""
    return Refusal(
        _Code.INVALID_ARGUMENT,
        f"content-type: {show(content_type)}: the charset must be utf-8",
        reason="CONTENT_TYPE",
    )


def compressed(encoding: str) -> Refusal:
    """For a compressed body."""
    return Refusal(
        _Code.INVALID_ARGUMENT,
        f"content-encoding: {show(encoding)}: bodies are taken as they are",
        reason="CONTENT_ENCODING",
    )


def body_too_large(limit: int) -> Refusal:
    """Bytes."""
    return Refusal(
        _Code.RESOURCE_EXHAUSTED,
        f"the body is larger than {limit} bytes",
        reason="BODY_TOO_LARGE",
    )


def bad_body(why: str) -> Refusal:
    """It is not the JSON object that it should be."""
    return Refusal(_Code.INVALID_ARGUMENT, f"the body {why}", reason="MALFORMED")
