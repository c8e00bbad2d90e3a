"""A call of the foreign contract in place of one of our own.

Invariant: the caller, its key and its deadline are those that gRPC reports; the call's end is
raised as a Refusal, so that it can be reported with the foreign contract's field names.
"""

from collections.abc import Mapping
from typing import Any

import grpc

from quire.service import errors
from quire.service.errors import OtherContext, Refusal
from quire.service.gateway.protos import SERVICE

_NAMES = (  # ours, and the foreign contract's; the first that fits counts
    ("token_ids.ids", "tokenized.input_ids"),
    ("token_ids", "tokenized.input_ids"),
    ("constraint.choice.options", "sampling_params.choice.choices"),
    ("constraint.", "sampling_params."),
    ("sampling.", "sampling_params."),
)


class GatewayContext(OtherContext):
    """A call's context, as far as the servicer uses one."""

    def __init__(self, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        self._context = context

    def invocation_metadata(self) -> Any:
        return self._context.invocation_metadata()

    def peer(self) -> str:
        return self._context.peer()

    def auth_context(self) -> Any:
        return self._context.auth_context()

    def time_remaining(self) -> float | None:
        return self._context.time_remaining()

    async def send_initial_metadata(self, metadata: Any) -> None:
        """The call was accepted."""
        await self._context.send_initial_metadata(metadata)

    def span(self, code: grpc.StatusCode) -> tuple[str, Mapping[str, str | int]]:
        """Named as OpenTelemetry names a gRPC server's."""
        told: dict[str, str | int] = {
            "rpc.system": "grpc",
            "rpc.service": SERVICE,
            "rpc.method": "Generate",
            "rpc.grpc.status_code": code.value[0],
        }
        return f"{SERVICE}/Generate", told


def renamed(refusal: Refusal, grammar: str = "grammar") -> Refusal:
    """The same refusal with the foreign contract's field names. grammar: the foreign field that our
    grammar came from."""
    if not refusal.violations:
        return refusal
    found = [one._replace(field=_foreign(one.field, grammar)) for one in refusal.violations]
    if refusal.reason in ("INVALID_FIELD", "CONTEXT_LENGTH_EXCEEDED"):
        return errors.invalid(found)
    return Refusal(
        refusal.code,
        refusal.message,
        reason=refusal.reason,
        violations=found,
        retry_after=refusal.retry_after,
    )


def _foreign(field: str, grammar: str) -> str:
    if field == "constraint.grammar":
        return f"sampling_params.{grammar}"
    for ours, theirs in _NAMES:
        if field.startswith(ours):
            return theirs + field.removeprefix(ours)
    return field
