"""The port for gateways: the foreign engine contract, and health, over the same servicer."""

from collections.abc import Callable
from pathlib import Path

import grpc

from quire.service.app import ports
from quire.service.app.health import Health
from quire.service.app.listener import Listener
from quire.service.app.openai_frontend import Parts
from quire.service.gateway.servicer import GatewayServicer, handler
from quire.service.settings import ServiceConfig
from quire.service.telemetry.counters import Ledger


def gateway_listener(
    service: ServiceConfig,
    parts: Parts,
    ledger: Ledger,
    health: Health,
    tokenizer: Path,
    new_server: Callable[[], grpc.aio.Server],
) -> Listener:
    """The gateway's port, not started yet. tokenizer: the directory of its files. new_server:
    creates a gRPC server with the guards of the main port. Raises ConfigError if the package with
    the protos is missing or the port cannot be opened."""
    assert service.gateway_port is not None
    authenticator = parts.access_control.authenticator
    servicer = GatewayServicer(
        parts.servicer, parts.lifecycle, ledger, authenticator, tokenizer, parts.version
    )
    credentials = parts.security.credentials()

    def make(port: int) -> tuple[grpc.aio.Server, int]:
        server = new_server()
        server.add_generic_rpc_handlers((handler(servicer),))
        health.add_to(server)
        host = service.gateway_host
        return server, ports.bind(server, host, port, credentials, "gateway_")

    return Listener(service.gateway_host, service.gateway_port, make)
