"""Refusals as OpenAI's clients read them: an HTTP status, and an error of their shape."""

from typing import Any

_STATUS = {  # by the names of gRPC's codes
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "NOT_FOUND": 404,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_BY_REASON = {  # where HTTP tells apart what gRPC has one status for
    "BODY_TOO_LARGE": 413,
    "CONTENT_ENCODING": 415,
    "CONTENT_TYPE": 415,
    "FOREIGN_HOST": 403,
    "HEADERS_TOO_LARGE": 431,
    "MESSAGE_TOO_LARGE": 413,
    "METHOD": 405,
    "SLOW_REQUEST": 408,
}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {"UNAUTHENTICATED": "invalid_api_key", "UNKNOWN_MODEL": "model_not_found"}


def status_of(code: str, reason: str) -> int:
    """code: a gRPC status by its name. reason: as the service tells it."""
    return _BY_REASON.get(reason) or _STATUS.get(code, 500)


def told(status: int, message: str, reason: str, param: str | None) -> dict[str, Any]:
    """The body of a refusal."""
    return {"error": error_of(status, message, reason, param)}


def error_of(status: int, message: str, reason: str, param: str | None) -> dict[str, Any]:
    """The error object. param: the field at fault, without the parts of its name in brackets."""
    return {
        "message": message,
        "type": _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        "param": None if param is None else param.partition(" (")[0],
        "code": _CODES.get(reason, reason.lower()),
    }
