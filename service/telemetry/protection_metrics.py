"""Metrics of what protects the server: queue admission and the certificate.

Invariant: no label names a client; the queue, which changes while the scraping thread runs, is read
by the event loop alone (see `loop_snapshot`).
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire.service.admission.admission import Admission
from quire.service.telemetry import logs
from quire.service.telemetry.counters import Ledger
from quire.service.telemetry.loop_snapshot import LoopSnapshot


@dataclass(frozen=True, slots=True)
class _Queue:
    """The queue at one moment."""

    waiting: int
    tokens: int
    estimated_wait: float
    refusals: tuple[tuple[str, int], ...]


class ProtectionCollector(Collector):
    """expires_at: seconds since 1970 of the certificate in force; None: no TLS."""

    def __init__(
        self,
        admission: Admission,
        ledger: Ledger,
        expires_at: Callable[[], float | None],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """loop: where the queue lives; None: on this thread."""
        self._limit = admission.policy.max_waiting
        self._expires_at = expires_at

        def take() -> _Queue:
            return _Queue(
                admission.waiting,
                admission.waiting_tokens,
                admission.estimated_wait(),
                tuple(ledger.refusals.items()),
            )

        self._queue = LoopSnapshot(take, loop)

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        queue = self._queue.read()
        yield GaugeMetricFamily(
            "quire_queue_waiting", "Completions let in and not started", value=queue.waiting
        )
        yield GaugeMetricFamily("quire_queue_limit", "max_waiting", value=self._limit)
        yield GaugeMetricFamily("quire_queue_tokens", "Prompt tokens that wait", value=queue.tokens)
        yield GaugeMetricFamily(
            "quire_queue_estimated_wait_seconds",
            "What one more call would have to wait, as admission sees it",
            value=queue.estimated_wait,
        )
        refusals = CounterMetricFamily(
            "quire_refusals", "Generate calls refused", labels=["reason"]
        )
        for reason, count in queue.refusals:
            refusals.add_metric([reason], count)
        yield refusals
        yield CounterMetricFamily(
            "quire_log_lines_lost", "Not written: standard error was stuck", value=logs.dropped()
        )
        expires_at = self._expires_at()
        if expires_at is not None:
            yield GaugeMetricFamily(
                "quire_tls_certificate_expiry_timestamp_seconds",
                "When the server's certificate ends, in seconds since 1970",
                value=expires_at,
            )
