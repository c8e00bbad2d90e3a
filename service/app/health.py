"""grpc.health.v1: readiness under "" and the service's name, liveness under `liveness`.

Invariant: readiness is SERVING exactly while calls are let in; liveness is SERVING from the moment
the port is open, also while loading and draining, until a watchdog says otherwise. Where the
package grpcio-health-checking is missing the server runs without, and says so in its log.
"""

import logging
from typing import Any

import grpc

try:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
except ImportError:
    health = None

log = logging.getLogger("quire.service")

READINESS = ("", "quire.v1.InferenceService")
LIVENESS = "liveness"
NAME = "grpc.health.v1.Health"


class Health:
    """What probes are told."""

    def __init__(self) -> None:
        self._servicer: Any = None if health is None else health.aio.HealthServicer()

    @property
    def available(self) -> bool:
        """Whether the package is installed."""
        return self._servicer is not None

    async def add_to(self, server: grpc.aio.Server) -> None:
        """Answer probes on this server: alive, and not ready."""
        if not self.available:
            log.warning("grpcio-health-checking is not installed: health checks are off")
            return
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        await self.set_ready(False)
        await self.set_alive(True)

    async def set_ready(self, ready: bool) -> None:
        """Readiness, under both of its names."""
        for name in READINESS:
            await self._set(name, ready)

    async def set_alive(self, alive: bool) -> None:
        """Liveness."""
        await self._set(LIVENESS, alive)

    async def _set(self, name: str, good: bool) -> None:
        if self.available:
            status = health_pb2.HealthCheckResponse
            await self._servicer.set(name, status.SERVING if good else status.NOT_SERVING)
