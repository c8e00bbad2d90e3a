"""Checks a call to our own service before its request is read, and counts its refusal.

Invariant: a caller without a key costs no more than its headers.
"""

from typing import Any

import grpc

from quire.service.errors import Refusal
from quire.service.security.auth import OWN_SERVICES, Authenticator
from quire.service.telemetry import access
from quire.service.telemetry.counters import Ledger

RUN_BY_THE_ENGINE = ("Generate", "Embed", "Score")  # whose refusals are counted with theirs


class CallGuard:
    """The guard of one server."""

    def __init__(self, authenticator: Authenticator, ledger: Ledger) -> None:
        self._authenticator = authenticator
        self._ledger = ledger

    def check(self, method: str, metadata: Any) -> Refusal | None:
        """Why the call is refused regardless of its request; None: read it. Callers of other
        services have been checked already."""
        if self._authenticator.required and method.startswith(OWN_SERVICES):
            try:
                self._authenticator.key_name(metadata)
            except Refusal as refusal:
                return refusal
        return None

    def on_refused(
        self, method: str, context: "grpc.aio.ServicerContext[Any, Any]", refusal: Refusal
    ) -> None:
        """The call ends before it reaches a servicer."""
        name = method.rpartition("/")[2]
        if method.startswith(OWN_SERVICES):
            self._ledger.rpc(name, refusal.code)
        if name in RUN_BY_THE_ENGINE:
            self._ledger.refuse(refusal.code, refusal.reason)
        access.refused(name, context, self._authenticator, refusal)
