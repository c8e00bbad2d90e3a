"""The list of open requests for operators.

Invariant: at most `MAX_LISTED` rows, whatever the number of requests; it contains sizes, times and
names, never text.
"""

from itertools import islice

from quire.service.rpc.call_admission import Call
from quire.v1 import inference_pb2 as pb

MAX_LISTED = 256


class OpenRequests:
    """Accepted calls that have not ended. Used on one event loop."""

    def __init__(self) -> None:
        self._calls: dict[int, Call] = {}  # by the engine's key, the longest open first

    def add(self, call: Call) -> None:
        """A call was accepted."""
        self._calls[call.accepted.generation.key] = call

    def remove(self, call: Call) -> None:
        """It has ended."""
        del self._calls[call.accepted.generation.key]

    def rows(self, now: float) -> list[pb.OpenRequest]:
        """The longest open first. now: time.monotonic()."""
        return [_row(call, now) for call in islice(self._calls.values(), MAX_LISTED)]


def _row(call: Call, now: float) -> pb.OpenRequest:
    record, generation = call.output.record(), call.accepted.generation
    return pb.OpenRequest(
        request_id=call.accepted.request_id,
        client=call.client,
        open_seconds=now - call.accepted_at,
        started=call.output.started,
        n=generation.n,
        prompt_tokens=len(generation.prompt_token_ids),
        cached_tokens=record.cached_tokens,
        completion_tokens=record.delivered,
        preemptions=record.preemptions,
    )
