"""The service's counters: calls, ends, tokens, times. Stats and metrics read them.

Invariant: counters only rise, and are written on the event loop alone. Every accepted index is
counted once when it finishes: accepted = finished + open, at any moment between two turns of the
loop.
"""

from collections import Counter

import grpc

from quire.engine.request import FinishReason
from quire.service.telemetry.histogram import GAP_BOUNDS, LATENCY_BOUNDS, Histogram


class Ledger:
    """One server's books."""

    def __init__(self) -> None:
        self.accepted = 0
        self.finished: Counter[FinishReason] = Counter()
        self.refused: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()  # of Generate, by ErrorInfo's reason
        self.rpcs: Counter[tuple[str, str]] = Counter()
        self.delivered = 0
        self.time_to_first_token = Histogram(LATENCY_BOUNDS)
        self.inter_token_latency = Histogram(GAP_BOUNDS)
        self.time_per_output_token = Histogram(GAP_BOUNDS)  # each completion's own mean
        self.queue_time = Histogram(LATENCY_BOUNDS)
        self.end_to_end = Histogram(LATENCY_BOUNDS)

    @property
    def open(self) -> int:
        """Indices accepted and not finished."""
        return self.accepted - sum(self.finished.values())

    def accept(self, n: int) -> None:
        """A call of n indices may run."""
        self.accepted += n

    def refuse(self, code: grpc.StatusCode, reason: str) -> None:
        """A call ended before it was accepted."""
        self.refused[code.name] += 1
        self.refusals[reason] += 1

    def rpc(self, method: str, code: grpc.StatusCode) -> None:
        """A call has ended."""
        self.rpcs[method, code.name] += 1
