"""The log's line of a call that was refused; the line of an accepted one is written at its end.

Invariant: one line a call, whatever refused it: the state of the server, the caller's key, their
limits, the queue, or the request itself.
"""

import logging
from typing import Any

import grpc

from quire.service.errors import Refusal
from quire.service.security.auth import Authenticator, peer_address

log = logging.getLogger("quire.service")


def refused(
    method: str,
    context: "grpc.aio.ServicerContext[Any, Any]",
    authenticator: Authenticator,
    refusal: Refusal,
) -> None:
    """method: its short name."""
    log.info(
        "request refused",
        extra={
            "fields": {
                "method": method,
                "client": _client(context, authenticator),
                "code": refusal.code.name,
                "reason": refusal.reason,
                "details": refusal.message,
            }
        },
    )


def _client(context: "grpc.aio.ServicerContext[Any, Any]", authenticator: Authenticator) -> str:
    """The caller's name, or the address of one without a name."""
    try:
        return authenticator.caller(context).client
    except Refusal:
        return peer_address(context.peer())
