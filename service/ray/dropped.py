"""Cancels calls that Ray's gRPC proxy drops silently.

If a caller leaves while a message is on its way to it, the proxy notices when it writes. It then
forgets the replica's stream, which would run to its end for nobody.

Invariant: calls that have ended or were cancelled are left alone.
"""

import asyncio
import importlib
from typing import Any

from quire.engine.errors import ConfigError

_PLACE, _NAME = "ray.serve._private.proxy_response_generator", "ProxyResponseGenerator"


def cancel_dropped() -> None:
    """Run in each of Ray's workers before its work. Raises ConfigError where Ray has no such class:
    it is that of Ray 2.60."""
    kind: Any = getattr(importlib.import_module(_PLACE), _NAME, None)
    if kind is None:
        raise ConfigError(f"ray: {_PLACE}.{_NAME} is not there")
    kind.__del__ = on_drop


def on_drop(responses: Any) -> None:
    """Nobody reads any more what a replica answers; responses: what the proxy has read it by."""
    if getattr(responses, "_done", True) or responses.cancelled():
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # another thread collects garbage: none of a call that is dropped in time
        return
    responses._response.cancel()
