"""The page's server: on loopback, for whoever knows the token in its URL.

Invariant: a request is answered only if it names this server as its host (so that no foreign name
leads here), has the token as its path's first part, and, where it changes something, comes from the
page itself. Every answer carries the headers that let the page load nothing but itself and make
text nothing but text. Nothing is logged, no path leads to a file.
"""

import hmac
import json
import secrets
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, cast

from quire.clients.client import Client
from quire.clients.errors import CallError, OptionError
from quire.clients.watch import prompt
from quire.clients.watch.hangup import hearing
from quire.clients.watch.source import Source

LOOPBACK = "127.0.0.1"
MAX_CONNECTIONS, MAX_STREAMS = 32, 8
PATIENCE = 30.0
"""Seconds that a connection may say nothing."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_PAGE = {
    "": ("index.html", "text/html; charset=utf-8"),
    "drawing.js": ("drawing.js", "text/javascript; charset=utf-8"),
    "watch.js": ("watch.js", "text/javascript; charset=utf-8"),
    "watch.css": ("watch.css", "text/css; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
_JSON, _TEXT = "application/json", "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Watched:
    """What the page shows. chat: whether prompts are sent as a user's message. interval: seconds
    between two updates. explain: the sentence for a failed call."""

    client: Client
    source: Source
    chat: bool
    interval: float
    explain: Callable[[CallError], str]


class WatchServer(ThreadingHTTPServer):
    """Listens when it is made; OSError if it cannot. `serve_forever` answers, in threads."""

    daemon_threads = True

    def __init__(self, watched: Watched, port: int = 0) -> None:
        self.watched = watched
        self.token = secrets.token_urlsafe(24)
        self.streams = threading.BoundedSemaphore(MAX_STREAMS)
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.page = {
            name: (files(__package__).joinpath("page", file).read_bytes(), kind)
            for name, (file, kind) in _PAGE.items()
        }
        super().__init__((LOOPBACK, port), _Handler)

    def server_bind(self) -> None:
        """Without the look-up of this machine's name, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{LOOPBACK}:{self.server_port}/{self.token}/"

    @cached_property
    def hosts(self) -> frozenset[str]:
        """The Host headers that a browser may send for this server; it leaves out HTTP's own
        port."""
        names = (LOOPBACK, "localhost")
        bare = names if self.server_port == 80 else ()
        return frozenset((*(f"{name}:{self.server_port}" for name in names), *bare))

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve it in a thread, if there is room for one more."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except Exception:  # no thread could be had; at Ctrl-C one may be at work, which releases
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread's work."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle is nothing to tell of."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE

    @property
    def _server(self) -> WatchServer:
        return cast(WatchServer, self.server)

    def do_GET(self) -> None:
        """The page, its parts, or `state`: a snapshot as JSON."""
        name = self._name()
        if name is None:
            return
        if name == "state":
            watched = self._server.watched
            self._json({"interval": watched.interval, **watched.source.look()})
        elif name in self._server.page:
            content, kind = self._server.page[name]
            self._answer(HTTPStatus.OK, content, kind)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        """`generate`: a prompt as JSON; its events, a line each, until it has ended."""
        name = self._name()
        if name is None:
            return
        origin = self.headers.get("Origin", "")
        if name != "generate":
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        elif origin.removeprefix("http://") not in self._server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN, "prompts come from the page alone")
        elif self.headers.get_content_type() != _JSON:
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"a prompt is {_JSON}")
        else:
            self._generate()

    def _name(self) -> str | None:
        """The requested file, after the token; None: it was refused."""
        host, path = self._target()
        if host not in self._server.hosts:
            told = "open the address that quire watch has printed, as it stands"
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, told)
            return None
        token, slash, name = path.removeprefix("/").partition("/")
        known = hmac.compare_digest(token.encode(), self._server.token.encode())
        if not (known and slash):
            told = "open the address that quire watch has printed: its token is missing or old"
            self._refuse(HTTPStatus.NOT_FOUND, told)
            return None
        return name

    def _target(self) -> tuple[str, str]:
        """The host that is meant, and the path: in absolute form both are the target's (RFC 9112,
        3.2.2)."""
        if self.path[:7].lower() != "http://":
            return self.headers.get("Host", ""), self.path
        host, slash, path = self.path[7:].partition("/")
        return host, slash + path

    # ------------------------------------------------------------ a prompt

    def _generate(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "a prompt says its length")
            return
        if len(length) > 9 or int(length) > prompt.LARGEST:
            told = f"a prompt has {prompt.LARGEST:,} bytes at most"
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, told)
            return
        watched = self._server.watched
        try:
            wanted = prompt.read(self.rfile.read(int(length)))
            generation = prompt.begin(watched.client, wanted, chat=watched.chat)
        except (prompt.BadPrompt, OptionError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        if not self._server.streams.acquire(blocking=False):
            told = f"{MAX_STREAMS} prompts are under way: wait for one, or stop one"
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS, told)
            return
        try:
            with hearing(self.connection, generation.close), generation:
                self._stream(prompt.events(generation, watched.explain))
        finally:
            self._server.streams.release()

    def _stream(self, events: Any) -> None:
        """A line an event; the connection's end is the answer's."""
        self._begin(HTTPStatus.OK, "application/x-ndjson", None)
        for event in events:
            self.wfile.write(json.dumps(event).encode() + b"\n")

    # ------------------------------------------------------------ answers

    def _json(self, value: dict[str, Any]) -> None:
        self._answer(HTTPStatus.OK, json.dumps(value).encode(), _JSON)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """One sentence. The connection ends: what else it holds is not read."""
        self.close_connection = True
        self._answer(status, json.dumps({"error": message}).encode(), _JSON)

    def _answer(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self._begin(status, kind, len(content))
        self.wfile.write(content)

    def _begin(self, status: HTTPStatus, kind: str, length: int | None) -> None:
        """length None: until the connection ends."""
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if length is None or self.close_connection:
            self.send_header("Connection", "close")  # which also ends it here
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Errors found by the base class, without its HTML page."""
        del message, explain
        self._refuse(HTTPStatus(code), HTTPStatus(code).phrase.lower())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: a line would hold the token."""
