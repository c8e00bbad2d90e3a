"""The HTTP port: connections in the server's own event loop, TLS, and shutdown.

Invariant: every handshake uses the certificate and the clients' authorities in force; clients that
are slow to send a request are disconnected; `stop` waits only for answers that are being written,
and not for long.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from quire.service.openai.connection import (
    HEADER_SECONDS,
    KEEP_ALIVE_SECONDS,
    MAX_HEADER_BYTES,
    App,
    Connection,
)
from quire.service.security.reload import WatchedFiles
from quire.service.security.tls import TLSMaterial

HANDSHAKE_SECONDS = 10.0
STOP_SECONDS = 1.0  # that answers get to be written at the end
LOOK_SECONDS = 1.0
_AFTER_THE_CALL = 5.0  # beyond the call's own limit, so that the call is ended first, and counted
Clock = Callable[[], float]


class HttpServer:
    """Serves an ASGI application on sockets that listen."""

    def __init__(
        self, app: App, most: int, stall_seconds: float, clock: Clock = time.monotonic
    ) -> None:
        """most: connections. stall_seconds: in which a client must read something; 0: any time."""
        self._config = Config(
            app,
            http=Connection,
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        self._config.load()
        self._state = ServerState()
        self._most = most
        self._stall_seconds = stall_seconds and stall_seconds + _AFTER_THE_CALL
        self._clock = clock
        self._servers: list[asyncio.Server] = []
        self._looking: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self._state.connections)

    async def start(self, sockets: Sequence[socket.socket], context: ssl.SSLContext | None) -> None:
        """context: None: plaintext."""
        loop = asyncio.get_running_loop()
        timeout = None if context is None else HANDSHAKE_SECONDS
        for listening in sockets:
            self._servers.append(
                await loop.create_server(
                    self._connection, sock=listening, ssl=context, ssl_handshake_timeout=timeout
                )
            )
        self.port = sockets[0].getsockname()[1]
        self._looking = asyncio.create_task(self._look())

    def _connection(self) -> Connection:
        return Connection(self._config, self._state, self._most, self._clock)

    def cut_off_slow(self) -> None:
        """End what has been awaited for too long."""
        now = self._clock()
        for connection in list(self._all()):
            connection.cut_off_if_slow(now, HEADER_SECONDS, self._stall_seconds)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.cut_off_slow()

    def _all(self) -> Any:
        return self._state.connections

    async def stop(self) -> None:
        """Close the port, finish answers that are nearly written, and close the connections."""
        for server in self._servers:
            server.close()
        if self._looking is not None:
            self._looking.cancel()
        for connection in list(self._all()):
            connection.shutdown()
        tasks = set(self._state.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_SECONDS)
        for connection in list(self._all()):
            connection.abort()


def tls_context(material: WatchedFiles[TLSMaterial], *, mutual: bool) -> ssl.SSLContext:
    """A context that takes the one in force at each handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE

    def choose(secured: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        secured.context = material.value.context

    context.sni_callback = choose
    return context
