"""The HTTP server behind --metrics-port, on threads of its own.

Invariant: a connection that sends nothing blocks nobody: handshakes and requests run on worker
threads, each connection may last `LIFE_SECONDS`, at most `MAX_CONNECTIONS` are open, and `stop`
waits for none of them. Every handshake uses the certificate and the clients' authorities in force.
"""

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from http.server import ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, MetricsHandler
from prometheus_client.registry import Collector

log = logging.getLogger("quire.service")

MAX_CONNECTIONS = 32
HANDSHAKE_SECONDS = 5.0
LIFE_SECONDS = 15.0  # of a connection, from its acceptance to the last byte of the answer
_LOOK_SECONDS = 0.25  # how often the accepting thread looks at stop and at old connections
_STOP_SECONDS = 5.0

Context = Callable[[], ssl.SSLContext | None]


class MetricsServer:
    """Listens as long as it lives."""

    def __init__(
        self,
        host: str,
        port: int,
        collectors: Sequence[Collector],
        context: Context = lambda: None,
        life_seconds: float = LIFE_SECONDS,
    ) -> None:
        """Listens at once. context: TLS for the next connection; None: plaintext. Raises OSError
        if the port is in use."""
        registry = CollectorRegistry()
        for collector in collectors:
            registry.register(collector)
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self._server = _server_class(family)((host, port), _handler(registry), context)
        self._server.life_seconds = life_seconds
        self.port: int = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            args=(_LOOK_SECONDS,),
            name="quire-metrics",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the port and what is open, and end the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._server.close_connections(older_than=0.0)
        self._thread.join(_STOP_SECONDS)


def _handler(registry: CollectorRegistry) -> type[Any]:
    handler: type[Any] = MetricsHandler.factory(registry)
    handler.timeout = HANDSHAKE_SECONDS  # of each read and write
    return handler


def _server_class(of_family: int) -> type["_Server"]:
    class Server(_Server):
        address_family = of_family

    return Server


class _Server(ThreadingHTTPServer):
    """Accepts on one thread; everything that waits for a client is done on another."""

    daemon_threads = True
    request_queue_size = 2 * MAX_CONNECTIONS

    def __init__(self, address: tuple[str, int], handler: type[Any], context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        # Since when, and what is cut off: TLS takes the descriptor over.
        self._open: dict[socket.socket, tuple[float, socket.socket]] = {}
        self.life_seconds = LIFE_SECONDS
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Without asking a name server for the host's name, as the class does."""
        socket_address = self.server_address
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(socket_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(socket_address[0]), self.server_address[1]

    def service_actions(self) -> None:
        """Called now and then by the accepting thread."""
        self.close_connections(older_than=self.life_seconds)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand a connection to a worker, or close it where there are too many."""
        with self._lock:
            taken = len(self._open) < MAX_CONNECTIONS
            if taken:
                self._open[request] = time.monotonic(), request
        if not taken:
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The worker: the handshake, the request, the answer."""
        try:
            context = self._context()
            if context is None:
                super().process_request_thread(request, client_address)
                return
            request.settimeout(HANDSHAKE_SECONDS)
            with (
                contextlib.suppress(OSError, ValueError),  # no TLS, no certificate, or too slow
                context.wrap_socket(
                    request, server_side=True, do_handshake_on_connect=False
                ) as secure,
            ):
                with self._lock:
                    self._open[request] = self._open[request][0], secure
                secure.do_handshake()
                super().process_request_thread(secure, client_address)
        finally:
            self._forget(request)
            with contextlib.suppress(OSError):
                request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is the client's affair, a page that cannot be made is not."""
        del request, client_address
        log.debug("a scrape failed", exc_info=True)

    def close_connections(self, older_than: float) -> None:
        """Cut off those that are open for longer (seconds): their workers then end."""
        now = time.monotonic()
        with self._lock:
            old = [one for since, one in self._open.values() if now - since >= older_than]
        for connection in old:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # beneath TLS

    def _forget(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
