"""Keeps Ray on this machine: by itself it listens on all addresses, and asks nobody who they are.

Ray has no options for most of this, so functions of its own are replaced: what it takes for the
node's address, and where Serve's gRPC proxy and its replicas listen. Others on this machine need
the token that is drawn here for Ray's own ports.
"""

import os
import secrets
from typing import Any

HERE = "127.0.0.1"


def keep_here() -> None:
    """In the process that starts Ray, before that is imported."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_enable_metrics_collection"] = "0"  # noqa: SIM112


def stay_here() -> None:
    """There too, before Ray is started."""
    from ray._private import services

    patched: Any = services
    patched.get_node_ip_address = lambda *_address, **_more: HERE
    patched.resolve_ip_for_localhost = lambda host: host


def listen_here() -> None:
    """Run in each of Ray's workers before its work: what Serve's proxy and its replicas would open
    to the network is opened on this machine alone."""
    from ray.serve._private import default_impl, replica

    _replace(default_impl, "add_grpc_address")
    _replace(replica, "add_port_to_grpc_server")


def _replace(module: Any, name: str) -> None:
    opened = getattr(module, name)

    def add(server: object, address: str) -> Any:
        return opened(server, f"{HERE}:{address.rpartition(':')[2]}")

    setattr(module, name, add)
