"""gRPC reflection: describes the contract to tools."""

import logging

import grpc

from quire.service.app.health import NAME as HEALTH_NAME
from quire.service.rpc.servicer import SERVICE

log = logging.getLogger("quire.service")


def add_reflection(server: grpc.aio.Server, *, with_health: bool) -> None:
    try:
        from grpc_reflection.v1alpha import reflection
    except ImportError:
        log.warning("grpcio-reflection is not installed: reflection is off")
        return
    names = [SERVICE, reflection.SERVICE_NAME]
    if with_health:
        names.append(HEALTH_NAME)
    reflection.enable_server_reflection(names, server)
