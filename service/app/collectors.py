"""The metrics that a scrape returns, on --metrics-port and at the OpenAI API's /metrics."""

import asyncio
from collections.abc import Callable

from prometheus_client import ProcessCollector
from prometheus_client.registry import Collector

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.loop.stats import EngineStats
from quire.service.admission.admission import Admission
from quire.service.rpc.call_admission import Serving
from quire.service.telemetry.counters import Ledger
from quire.service.telemetry.metrics import Build, QuireCollector, Sources
from quire.service.telemetry.protection_metrics import ProtectionCollector


def collectors(
    engine: AsyncEngine,
    ledger: Ledger,
    admission: Admission,
    serving: Callable[[], Serving | None],
    step_hung: Callable[[], bool],
    expires_at: Callable[[], float | None],
    version: str,
) -> list[Collector]:
    """serving: None until the model is loaded. expires_at: of the certificate; None: no TLS. To be
    called on the event loop, which the queue's numbers are read on."""

    def engine_stats() -> EngineStats | None:
        return engine.stats() if serving() is not None else None

    def build() -> Build | None:
        loaded = serving()
        return None if loaded is None else Build.of(version, loaded.model.name, loaded.model.info)

    sources = Sources(ledger, engine_stats, engine.step_times, step_hung, build)
    return [
        QuireCollector(sources),
        ProtectionCollector(admission, ledger, expires_at, asyncio.get_running_loop()),
        ProcessCollector(registry=None),
    ]
