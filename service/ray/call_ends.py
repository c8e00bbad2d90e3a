"""How a replica's call failed: as values, and as refusals."""

from collections.abc import Sequence
from typing import TypeAlias

import grpc

from quire.clients.errors import CallError, from_rpc_error
from quire.service.errors import Refusal, Violation, clip

Pairs: TypeAlias = Sequence[tuple[str, str]]
End: TypeAlias = tuple[str, str, tuple[tuple[str, str | bytes], ...]]
"""The status's name, its words, its trailers."""


def end_of(refusal: Refusal) -> End:
    """A refusal as the replica's server would have sent it."""
    return refusal.code.name, clip(refusal.message), refusal.trailers()


def error_of(end: End) -> grpc.aio.AioRpcError:
    """The error that a client of that server would have seen."""
    name, words, trailers = end
    metadata = grpc.aio.Metadata(*trailers)
    return grpc.aio.AioRpcError(grpc.StatusCode[name], grpc.aio.Metadata(), metadata, words)


def refusal_of(error: CallError) -> Refusal:
    """The same as a Refusal of a server of ours."""
    details = error.details
    return Refusal(
        error.code,
        error.message,
        reason=details.reason or "NO_REPLICA",
        violations=[Violation(one.field, one.description) for one in details.violations],
        retry_after=details.retry_after,
    )


def refused(end: End) -> Refusal:
    """An end as a refusal."""
    return refusal_of(from_rpc_error(error_of(end)))
