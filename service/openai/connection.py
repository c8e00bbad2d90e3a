"""One connection: uvicorn's, with bounds before a request is known.

Invariant: a client that has not sent its headers within HEADER_SECONDS is cut off, even if it is
still sending them; so is one that does not read, and one whose body comes in tiny chunks: to read
each takes the event loop as long as a large one. Headers are bounded in size, however many come at
once; there are at most `most` connections. Where a request names its host in its target, the header
says the same.
"""

import functools
import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

log = logging.getLogger("quire.service")

HEADER_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 75  # that a connection may rest between two requests
MAX_HEADER_BYTES = 16 << 10
MANY_CHUNKS, CHUNK_BYTES = 1024, 128  # of a body: so many, and one more for so many bytes
_ABSOLUTE = re.compile(rb"(?i:https?)://(?P<host>[^/]*)(?P<path>.*)")

App = Callable[[Scope, Receive, Send], Awaitable[None]]


class _Http(h11.Connection):
    """What a client says. Counts the chunks of a body, where it comes in chunks. fault: more of
    them than there may be; empty: not so."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEADER_BYTES)
        self._chunks = self._bytes = 0
        self.fault = ""

    def next_event(self) -> Any:
        """See h11."""
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            most = MANY_CHUNKS + self._bytes // CHUNK_BYTES
            if self._chunks > most:
                self.fault = f"body: {self._chunks} chunks for {self._bytes} bytes: at most {most}"
                raise h11.RemoteProtocolError(self.fault)
        elif isinstance(event, h11.EndOfMessage):
            self._chunks = self._bytes = 0
        return event


class Connection(H11Protocol):
    """`since`: when the server began to wait for the client; None while a request is answered, or
    before the next one has begun."""

    def __init__(self, config: Config, state: ServerState, most: int, clock: Any) -> None:
        """clock: seconds, of any beginning."""
        super().__init__(config, state, {}, _loop=None)
        self.conn = _Http()
        self.app = functools.partial(_with_connection, self.app, self)
        self._most = most
        self._clock = clock
        self.since: float | None = None
        self._unread = 0, 0.0  # bytes that wait to be sent, and since when no fewer do

    def connection_made(self, transport: Any) -> None:
        """A connection too many is closed without a word."""
        super().connection_made(transport)
        self.since = self._clock()
        if len(self.connections) > self._most:
            self.connections.discard(self)
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing of it stays. One that was reset uvicorn would keep, with its request, until the
        next request were late, and count it nowhere."""
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def data_received(self, data: bytes) -> None:
        """Take what has arrived; a request's headers may be complete now. A body that is not being
        read is left to the network's buffers. h11 gets at most as many bytes at once as headers may
        have: it would parse all that is there before it checks their size."""
        if self.since is None and not self._busy:
            self.since = self._clock()
        for start in range(0, len(data), MAX_HEADER_BYTES):
            super().data_received(data[start : start + MAX_HEADER_BYTES])
            if self.transport.is_closing():
                return
        if self._busy and self.cycle.more_body:
            self.flow.pause_reading()

    def handle_events(self) -> None:
        """See uvicorn; also called for a request that came before its turn."""
        if self.conn.our_state is h11.IDLE and not self._is_begun():
            return
        super().handle_events()
        if self._busy:
            self.since = None

    def _is_begun(self) -> bool:
        """Whether a request has begun after empty lines, which RFC 9112 (2.2) says to skip. h11
        refuses them and cannot take input back, so a new h11 connection continues."""
        here, _ = self.conn.trailing_data
        rest = here.lstrip(b"\r\n")
        if len(rest) < len(here):
            self.conn = _Http()
            if rest:  # else h11 would take it for the connection's end
                self.conn.receive_data(rest)
        return bool(rest)

    def on_response_complete(self) -> None:
        """The next request may begin; what has already arrived of it counts from now on."""
        rest = bool(self.conn.trailing_data[0])
        self.since = self._clock() if rest else None
        super().on_response_complete()

    def cut_off_if_slow(self, now: float, seconds: float, stall: float) -> None:
        """Close the connection of a client that has kept the server waiting for this long, or has
        read nothing for `stall` seconds (0: any time) of what was written."""
        unread = self.transport.get_write_buffer_size()
        before, since = self._unread
        if not unread or unread != before:
            self._unread = unread, now
        elif stall and now - since >= stall:
            self.transport.abort()
        if self.since is not None and now - self.since >= seconds:
            self.transport.abort()

    def abort(self) -> None:
        """Close now, whatever has not been read."""
        self.transport.abort()

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """Answer input that is no HTTP with an error of OpenAI's shape, if an answer has not begun.
        Who reads the body it stands in learns that the client has gone."""
        begun = self._busy and self.cycle.response_started
        if begun or self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        if self._busy:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        assert isinstance(self.conn, _Http)
        msg = self.conn.fault or msg
        error = {"message": msg, "type": "invalid_request_error", "param": None, "code": "http"}
        body = json.dumps({"error": error}).encode()
        headers = [("content-type", "application/json"), ("connection", "close")]
        headers.append(("content-length", str(len(body))))
        content = () if self._busy and self.scope["method"] == "HEAD" else (h11.Data(data=body),)
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            *content,
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


async def _with_connection(
    app: App, connection: Connection, scope: Scope, receive: Receive, send: Send
) -> None:
    names = {name for name, _ in scope["headers"]}
    if {b"transfer-encoding", b"content-length"} <= names:
        # A proxy may have seen the body's end elsewhere: nothing behind it is a request (RFC 9112,
        # 6.1). The list is what uvicorn looks at when it answers.
        scope["headers"].append((b"connection", b"close"))
    await app({**_origin_form(scope), "connection": connection}, receive, send)


def _origin_form(scope: Scope) -> Scope:
    """A request in absolute form, as sent to proxies, in origin form: the host of its target is the
    one that counts (RFC 9112, 3.2.2)."""
    target = _ABSOLUTE.fullmatch(scope["raw_path"])
    if target is None:
        return scope
    path = target["path"] or b"/"
    others = [header for header in scope["headers"] if header[0] != b"host"]
    return {
        **scope,
        "raw_path": path,
        "path": unquote(path.decode("ascii")),
        "headers": [(b"host", target["host"]), *others],
    }
