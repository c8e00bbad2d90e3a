"""Keeps Ray on this machine: by itself it listens on all addresses, and asks nobody who they are.

Ray has no options for most of this, so functions of its own are replaced: what it takes for the
node's address, and where Serve's gRPC proxy and its replicas listen. Others on this machine need
the token that is drawn here for Ray's own ports.

Invariant: a Ray whose functions are not those that are known here is not started. Another version
may listen by other ones, which nobody has replaced.
"""

import importlib
import os
import secrets
from typing import Any

from quire.engine.errors import ConfigError

HERE = "127.0.0.1"
KNOWN = "2.60"  # whose functions these are; `pyproject.toml` asks for no other
_NODE, _PROXY, _REPLICA = (
    "ray._private.services",
    "ray.serve._private.default_impl",
    "ray.serve._private.replica",
)
_REPLACED = (
    (_NODE, "get_node_ip_address"),
    (_NODE, "resolve_ip_for_localhost"),
    (_PROXY, "add_grpc_address"),
    (_REPLICA, "add_port_to_grpc_server"),
)


def keep_here() -> None:
    """In the process that starts Ray, before that is imported."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_enable_metrics_collection"] = "0"  # noqa: SIM112


def stay_here() -> None:
    """There too, before Ray is started. Raises ConfigError where it could not be kept here."""
    _check_known()
    patched: Any = importlib.import_module(_NODE)
    patched.get_node_ip_address = lambda *_address, **_more: HERE
    patched.resolve_ip_for_localhost = lambda host: host


def listen_here() -> None:
    """Run in each of Ray's workers before its work: what Serve's proxy and its replicas would open
    to the network is opened on this machine alone. Raises ConfigError, and the worker ends."""
    _check_known()
    for place, name in ((_PROXY, "add_grpc_address"), (_REPLICA, "add_port_to_grpc_server")):
        _replace(importlib.import_module(place), name)


def _check_known() -> None:
    """Raises ConfigError, which names the version."""
    version = str(getattr(importlib.import_module("ray"), "__version__", "unknown"))
    refused = f"ray = {version}: quire ray keeps Ray {KNOWN} on this machine, and no other"
    if version.rpartition(".")[0] != KNOWN:
        raise ConfigError(refused)
    for place, name in _REPLACED:
        try:
            found = getattr(importlib.import_module(place), name, None)
        except ImportError:
            found = None
        if not callable(found):
            raise ConfigError(f"{refused}: {place}.{name} is not there")


def _replace(module: Any, name: str) -> None:
    opened = getattr(module, name)

    def add(server: object, address: str) -> Any:
        return opened(server, f"{HERE}:{address.rpartition(':')[2]}")

    setattr(module, name, add)
