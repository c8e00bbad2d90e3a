"""Refusals as HTTP has them: a status, and an error of the shape that OpenAI's clients read.

Invariant: the words are those that a gRPC client is told; only the fields have HTTP's names.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from quire.service.errors import Refusal, clip, show

_Code = grpc.StatusCode
_STATUS = {
    _Code.CANCELLED: 499,
    _Code.INVALID_ARGUMENT: 400,
    _Code.NOT_FOUND: 404,
    _Code.UNAUTHENTICATED: 401,
    _Code.PERMISSION_DENIED: 403,
    _Code.RESOURCE_EXHAUSTED: 429,
    _Code.UNIMPLEMENTED: 501,
    _Code.UNAVAILABLE: 503,
    _Code.DEADLINE_EXCEEDED: 504,
}
_BY_REASON = {  # where HTTP tells apart what gRPC has one status for
    "BODY_TOO_LARGE": 413,
    "CONTENT_ENCODING": 415,
    "CONTENT_TYPE": 415,
    "FOREIGN_HOST": 403,
    "HEADERS_TOO_LARGE": 431,
    "METHOD": 405,
    "SLOW_REQUEST": 408,
}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {"UNAUTHENTICATED": "invalid_api_key", "UNKNOWN_MODEL": "model_not_found"}
_RETRY_SECONDS = 1.0  # where nothing better is known: the server is loading or leaving


@dataclass(frozen=True, slots=True)
class Problem:
    """An answer that refuses. headers: beside the content's type."""

    status: int
    error: Mapping[str, Any]
    headers: Mapping[str, str]

    @property
    def body(self) -> bytes:
        """JSON."""
        return json.dumps({"error": self.error}, ensure_ascii=False).encode("utf-8", "replace")


def problem(refusal: Refusal) -> Problem:
    """The refusal's fields have HTTP's names already (see `names`)."""
    status = _BY_REASON.get(refusal.reason) or _STATUS.get(refusal.code, 500)
    error = {
        "message": clip(refusal.message, 4096),
        "type": _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        "param": _param(refusal),
        "code": _CODES.get(refusal.reason, refusal.reason.lower()),
    }
    return Problem(status, error, _headers(status, refusal.retry_after))


def _param(refusal: Refusal) -> str | None:
    """The first field at fault, without what is said of it in brackets."""
    return refusal.violations[0].field.partition(" (")[0] if refusal.violations else None


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
    return Refusal(_Code.NOT_FOUND, f"there is nothing at {show(path)}", reason="UNKNOWN_PATH")


def no_responses_api() -> Refusal:
    """The newer API, which keeps conversations on the server."""
    return Refusal(
        _Code.NOT_FOUND,
        "/v1/responses is not served here: send the conversation to /v1/chat/completions",
        reason="UNKNOWN_PATH",
    )


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


def compressed(encoding: str) -> Refusal:
    """Of a body."""
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
