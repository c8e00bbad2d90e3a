"""A request's body: bounded in size and time while it comes in, then strict JSON.

Invariant: a body takes its turn with those of gRPC (see `intake`), so what strangers may have in
memory is bounded for both APIs together; nothing is parsed that is larger than it may be; what the
JSON says twice, or in numbers that are none, is refused.
"""

from typing import Any

from starlette.requests import Request

from quire.clients.strict_json import BODY_DEPTH, BadJson, read_object
from quire.service.admission.intake import Places
from quire.service.openai import problems

_JSON = "application/json"
_CHARSETS = ("utf-8", "utf8")


class Bodies:
    """Reads them. Also raises starlette's ClientDisconnect, of a client that leaves meanwhile."""

    def __init__(self, places: Places, most: int) -> None:
        """most: bytes of a body."""
        self._places = places
        self._most = most

    async def read(self, request: Request, connection: str) -> bytes:
        """Read a request's body. connection: whose turn it takes. Raises Refusal."""
        _check_type(request.headers.get("content-type", ""))
        _check_encoding(request.headers.get("content-encoding", ""))
        self._check_length(request.headers.get("content-length", "0"))
        async with self._places.place(connection):
            return await self._whole(request)

    async def _whole(self, request: Request) -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._most:
                raise problems.body_too_large(self._most)
            parts.append(part)
        return b"".join(parts)

    def _check_length(self, told: str) -> None:
        if told.isdecimal() and int(told[:20]) > self._most:
            raise problems.body_too_large(self._most)


def _check_type(content_type: str) -> None:
    """Parameters as RFC 9110 has them (5.6.6); of JSON's none means anything (RFC 8259), but for a
    charset that it is not in."""
    kind, *parameters = content_type.lower().split(";")
    if kind.strip() != _JSON:
        raise problems.not_json(content_type)
    for parameter in parameters:
        name, _, value = parameter.strip().partition("=")
        if name == "charset" and value.strip('"') not in _CHARSETS:
            raise problems.not_utf8(content_type)


def _check_encoding(told: str) -> None:
    """A compressed body may be of any size once it is unpacked."""
    if told.strip().lower() not in ("", "identity"):
        raise problems.compressed(told)


def parse(body: bytes) -> dict[str, Any]:
    """The object. Raises Refusal."""
    try:
        return read_object(body.decode(), BODY_DEPTH)
    except UnicodeDecodeError as error:
        raise problems.bad_body(f"is not UTF-8 (byte {error.start})") from None
    except BadJson as error:
        raise problems.bad_body(str(error)) from None
