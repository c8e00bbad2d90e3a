"""Refusals as Anthropic's clients read them."""

from collections.abc import Mapping
from typing import Any

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_UNTHREADED = {"error_code": "thread_unsupported_request", "unsupported": []}


def told(status: int, message: str, _reason: str, param: str | None) -> dict[str, Any]:
    """The body of a refusal: Anthropic's has no place for a reason or a field, which the message
    names. Who asks for a conversation that the server keeps is told so in the form by which its
    own client asks again without one."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    error: dict[str, Any] = {"type": kind, "message": message}
    if param == "thread":
        error["details"] = _UNTHREADED
    return around(error)


def around(error: Mapping[str, Any], request_id: str | None = None) -> dict[str, Any]:
    """An error with what stands around it. request_id: of a call that was accepted."""
    return {"type": "error", "error": error, "request_id": request_id}
