"""Metrics of what guards the server: the queue's doorkeeper and the certificate.

Invariant: as in `metrics`: read at the scrape, and no label names a client.
"""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire.service.admission.admission import Admission
from quire.service.telemetry import logs
from quire.service.telemetry.counters import Ledger


class ProtectionCollector(Collector):
    """expires_at: seconds since 1970 of the certificate in force; None: no TLS."""

    def __init__(
        self, admission: Admission, ledger: Ledger, expires_at: Callable[[], float | None]
    ) -> None:
        self._admission = admission
        self._ledger = ledger
        self._expires_at = expires_at

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        admission, policy = self._admission, self._admission.policy
        yield GaugeMetricFamily(
            "quire_queue_waiting", "Completions let in and not started", value=admission.waiting
        )
        yield GaugeMetricFamily("quire_queue_limit", "max_waiting", value=policy.max_waiting)
        yield GaugeMetricFamily(
            "quire_queue_tokens", "Prompt tokens that wait", value=admission.waiting_tokens
        )
        yield GaugeMetricFamily(
            "quire_queue_estimated_wait_seconds",
            "What one more call would have to wait, as admission sees it",
            value=admission.estimated_wait(),
        )
        refusals = CounterMetricFamily(
            "quire_refusals", "Generate calls refused", labels=["reason"]
        )
        for reason, count in list(self._ledger.refusals.items()):
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
