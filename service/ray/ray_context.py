"""A call that Ray has carried to a replica, in place of a gRPC context.

Invariant: who calls, and with which key, is what the caller's own metadata say; a refusal reaches
the replica as it is, and travels back as a value.
"""

from collections.abc import Mapping
from typing import Any

import grpc

from quire.service.errors import OtherContext
from quire.service.ray.call_ends import Pairs
from quire.service.telemetry.tracing import grpc_span

_FORWARDED = ("authorization", "traceparent", "tracestate")


class RayContext(OtherContext):
    """A call's context, as far as the servicer uses one."""

    def __init__(self, method: str, metadata: Pairs) -> None:
        """metadata: the caller's, all of it."""
        self._method = method
        self._metadata = tuple((name, value) for name, value in metadata if name in _FORWARDED)

    def invocation_metadata(self) -> Pairs:
        """What a replica is to know of it."""
        return self._metadata

    def peer(self) -> str:
        """All come from Ray: without keys they are one client."""
        return "ipv4:127.0.0.1:0"

    def auth_context(self) -> Mapping[str, tuple[bytes, ...]]:
        """Ray's proxies know no certificates."""
        return {}

    def time_remaining(self) -> float | None:
        """Ray cancels the call when its deadline has passed."""
        return None

    async def send_initial_metadata(self, metadata: Any) -> None:
        """The call was accepted, as `started` says too."""

    def span(self, code: grpc.StatusCode) -> tuple[str, Mapping[str, str | int]]:
        """As for a call over gRPC."""
        return grpc_span(code, self._method)
