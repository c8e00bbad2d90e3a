"""grpc.health.v1: readiness under "" and the service's name, liveness under `liveness`.

Invariant: readiness is SERVING exactly while calls are admitted. Liveness is SERVING from the
moment the port is open, also while loading and draining, until a watchdog says otherwise. Setting a
status waits for nobody: each watcher is notified by its own call, so one that does not read delays
only itself. The number of watchers is limited. If the package grpcio-health-checking is missing the
server runs without, and says so in its log.
"""

import asyncio
import logging
from collections import Counter
from typing import Any

import grpc

try:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
except ImportError:
    health_pb2 = None

log = logging.getLogger("quire.service")

READINESS = ("", "quire.v1.InferenceService")
LIVENESS = "liveness"
NAME = "grpc.health.v1.Health"
MAX_NAME = 256  # characters of a service that is watched
MAX_WATCHES = 1024
MAX_WATCHES_PER_CONNECTION = 16

Context = grpc.aio.ServicerContext[Any, Any]


class Health:
    """The answers to probes. Used on the event loop only; nothing here blocks except a watcher's
    own call."""

    def __init__(self) -> None:
        self._good = dict.fromkeys((*READINESS, LIVENESS), False)
        self._changed = asyncio.Event()  # set once, at the next change, and then replaced
        self._watches: Counter[str] = Counter()  # by connection
        self._closed = False
        self._alive = False

    @property
    def available(self) -> bool:
        """Whether the package is installed."""
        return health_pb2 is not None

    @property
    def watches(self) -> int:
        """Open ones."""
        return self._watches.total()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Answer probes on this server: alive, and not ready."""
        if not self.available:
            log.warning("grpcio-health-checking is not installed: health checks are off")
            return
        health_pb2_grpc.add_HealthServicer_to_server(self, server)
        if not self._alive:  # a port that is opened again says nothing new
            self._alive = True
            self.set_alive(True)

    def set_ready(self, ready: bool) -> None:
        """Readiness, under both of its names."""
        self._set(READINESS, ready)

    def set_alive(self, alive: bool) -> None:
        """Liveness."""
        self._set((LIVENESS,), alive)

    def close(self) -> None:
        """Nothing is ready any more, and every watch ends."""
        self._closed = True
        self._set(READINESS, False)

    # ------------------------------------------------------------ the calls

    async def Check(self, request: Any, context: Context) -> Any:
        """The current status. NOT_FOUND for an unknown name."""
        if request.service not in self._good:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return self._answer(request.service)

    async def List(self, _request: Any, _context: Context) -> Any:
        """All names with their current status."""
        statuses = {name: self._answer(name) for name in self._good}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(self, request: Any, context: Context) -> None:
        """The current status, and every change. RESOURCE_EXHAUSTED if there are too many
        watchers."""
        connection, name = context.peer(), request.service
        if len(name) > MAX_NAME:  # it would be held as long as the watch
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"service: {len(name)} characters: at most {MAX_NAME}",
            )
        if self.watches >= MAX_WATCHES or self._watches[connection] >= MAX_WATCHES_PER_CONNECTION:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"too many watches: at most {MAX_WATCHES_PER_CONNECTION} a connection, "
                f"and {MAX_WATCHES} in all",
            )
        self._watches[connection] += 1
        try:
            await self._tell(name, context)
        finally:
            self._watches[connection] -= 1
            if not self._watches[connection]:
                del self._watches[connection]
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")

    async def _tell(self, name: str, context: Context) -> None:
        """Send changes until there can be no more."""
        told = None
        while True:
            changed, closed, answer = self._changed, self._closed, self._answer(name)
            if answer != told:
                await context.write(answer)
                told = answer
            elif closed:
                return
            else:
                await changed.wait()

    def _answer(self, name: str) -> Any:
        status = health_pb2.HealthCheckResponse
        if name not in self._good:
            return status(status=status.SERVICE_UNKNOWN)
        return status(status=status.SERVING if self._good[name] else status.NOT_SERVING)

    def _set(self, names: tuple[str, ...], good: bool) -> None:
        for name in names:
            self._good[name] = good
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
