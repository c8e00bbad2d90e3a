"""A gRPC port that is opened again if gRPC closes it.

gRPC accepts calls in a task of its own. A single frame whose path is not text ends that task and
closes the port, while open calls continue. So the ports are checked whenever a task of the event
loop has died of an exception. A closed port is opened again on a new gRPC server; clients' channels
reconnect by themselves.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import grpc

log = logging.getLogger("quire.service")

_LOOKS = (0.0, 0.05, 0.2, 1.0)  # seconds between looks: the port closes a moment after the fault
_CONNECT_SECONDS = 2.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}

Make = Callable[[int], tuple[grpc.aio.Server, int]]


class Listener:
    """One port, and the servers that have had it."""

    def __init__(self, host: str, port: int, make: Make) -> None:
        """make: of a port (0: any), a server that is bound to it, and its port. Binds at once."""
        self._host = host
        self._make = make
        self._server, self.port = make(port)
        self._before: list[grpc.aio.Server] = []  # their calls may be open still

    async def start(self) -> None:
        """Take calls."""
        await self._server.start()

    async def stop(self, grace: float | None) -> None:
        """Close the port. Open calls get `grace` seconds; None: they are cancelled."""
        for server in self._before:
            task = asyncio.ensure_future(server.stop(grace))
            task.add_done_callback(_heard)
        await self._server.stop(grace)

    async def reopen_if_closed(self) -> bool:
        """Whether it was."""
        if await self._is_open():
            return False
        self._before.append(self._server)
        self._server, _ = self._make(self.port)
        await self._server.start()
        return True

    async def _is_open(self) -> bool:
        host = _ANYWHERE.get(self._host, self._host)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(host, self.port)
        except ConnectionRefusedError:
            return False
        except (OSError, TimeoutError):
            return True  # it is there, and slow
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True


class Keeper:
    """Looks at the ports of an event loop when one of its tasks has died unheard."""

    def __init__(self, listeners: list[Listener]) -> None:
        self._listeners = listeners
        self._looking: asyncio.Task[None] | None = None
        self._fault = False  # that no look has begun after
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._on_fault)

    def stop(self) -> None:
        """Stop checking: a port that closes now stays closed."""
        self._loop.set_exception_handler(None)
        if self._looking is not None:
            self._looking.cancel()

    def _on_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), UnicodeDecodeError):
            loop.default_exception_handler(context)
        self._fault = True
        if self._looking is None or self._looking.done():
            self._looking = loop.create_task(self._look())

    async def _look(self) -> None:
        while self._fault:
            self._fault = False
            for seconds in _LOOKS:
                await asyncio.sleep(seconds)
                await self._look_once()

    async def _look_once(self) -> None:
        for listener in self._listeners:
            try:
                if await listener.reopen_if_closed():
                    log.error("gRPC has closed port %d, over a call it could not read: it is "
                              "open again", listener.port)  # fmt: skip
            except Exception as error:
                log.critical("port %d is closed and cannot be opened: %s", listener.port, error)


def _heard(task: "asyncio.Future[None]") -> None:
    if not task.cancelled():
        task.exception()
