"""Prometheus metrics on a port of their own, computed at each scrape from existing counters.

Invariant: serving a request never touches a metric; no label holds a key, a peer or a request. A
number that has two names, ours and the one that schedulers know, is read once, so both are equal.
"""

import enum
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from quire.engine.loop.stats import EngineInfo, EngineStats
from quire.engine.loop.step_times import StepTimes
from quire.engine.request import FinishReason
from quire.service.telemetry.counters import Ledger
from quire.service.telemetry.histogram import Histogram

OURS, THEIRS = "quire_", "vllm:"
_HUNG = "1 while a step has taken longer than it may"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers come from; the engine's are None until it is ready."""

    ledger: Ledger
    engine: Callable[[], EngineStats | None]
    step_times: Callable[[], StepTimes | None]
    step_hung: Callable[[], bool]
    build: Callable[[], "Build | None"] = lambda: None


@dataclass(frozen=True, slots=True)
class Build:
    """What is running: known once the model is loaded. block_size: tokens of a cache block."""

    version: str
    model: str
    fingerprint: str
    device: str
    dtype: str
    block_size: int

    @classmethod
    def of(cls, version: str, model: str, info: EngineInfo) -> "Build":
        """The Build of a loaded model. model: its name."""
        return cls(version, model, info.fingerprint, info.device, info.dtype, info.block_size)


class QuireCollector(Collector):
    """Reads everything at the moment of the scrape."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        engine, step_times = self._sources.engine(), self._sources.step_times()
        build = None if engine is None else self._sources.build()
        readings = list(_service_readings(self._sources.ledger))
        if engine is not None:
            readings += _engine_readings(engine)
        for reading in readings:
            yield reading.ours()
        yield from _calls(self._sources.ledger)
        if engine is not None:
            yield _steps(engine)
            if build is not None:
                yield _build_info(build)
                yield _cache_config(engine, build)
                yield from (r.theirs(build.model) for r in readings if r.known_as)
        if step_times is not None:
            yield _step_seconds(step_times)
        yield Reading("step_hung", _HUNG, float(self._sources.step_hung())).ours()


class Kind(enum.Enum):
    """The type of a metric."""

    GAUGE = GaugeMetricFamily
    COUNTER = CounterMetricFamily


class Cumulative(NamedTuple):
    """A histogram as Prometheus has it: each bucket with all those below it."""

    buckets: list[tuple[str, float]]
    sum: float

    @classmethod
    def of(cls, histogram: Histogram) -> "Cumulative":
        """As it is now."""
        counts, total, below = list(histogram.counts), histogram.sum, 0
        buckets = []
        for bound, count in zip((*histogram.bounds, float("inf")), counts, strict=True):
            below += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), float(below)))
        return cls(buckets, total)


@dataclass(frozen=True, slots=True)
class Reading:
    """One number, or one histogram, as it was at the scrape. known_as: what schedulers of inference
    (the Gateway API's, for one) and dashboards made for vLLM's server call it; empty: nothing."""

    name: str
    text: str
    value: float | Cumulative
    kind: Kind = Kind.GAUGE
    known_as: str = ""

    def ours(self) -> Metric:
        """Under our name."""
        return self._family(OURS + self.name, {})

    def theirs(self, model: str) -> Metric:
        """Under the name that others know, which wants the model's as a label."""
        return self._family(THEIRS + self.known_as, {"model_name": model})

    def _family(self, name: str, labels: dict[str, str]) -> Metric:
        family: Metric
        if isinstance(self.value, Cumulative):
            family = histogram = HistogramMetricFamily(name, self.text, labels=list(labels))
            histogram.add_metric(list(labels.values()), self.value.buckets, self.value.sum)
            return family
        family = number = self.kind.value(name, self.text, labels=list(labels))
        number.add_metric(list(labels.values()), float(self.value))
        return family


def _service_readings(ledger: Ledger) -> Iterator[Reading]:
    for name, text, histogram in (
        (
            "time_to_first_token_seconds",
            "From acceptance to the first token",
            ledger.time_to_first_token,
        ),
        (
            "inter_token_latency_seconds",
            "Between consecutive tokens of one completion",
            ledger.inter_token_latency,
        ),
        (
            "request_time_per_output_token_seconds",
            "Mean time between tokens, of each completion that came to its end",
            ledger.time_per_output_token,
        ),
        (
            "e2e_request_latency_seconds",
            "From acceptance to the end of the call",
            ledger.end_to_end,
        ),
    ):
        yield Reading(name, text, Cumulative.of(histogram), known_as=name)
    queued = "From acceptance to the first time scheduled"
    yield Reading("request_queue_seconds", queued, Cumulative.of(ledger.queue_time))
    delivered = "Tokens delivered to streams"
    yield Reading("delivered_tokens", delivered, ledger.delivered, Kind.COUNTER)


_ON_CPU = " (CPU: the process's, cache as it fills)"


def _engine_readings(engine: EngineStats) -> Iterator[Reading]:
    usage = engine.blocks_in_use / max(engine.blocks_total, 1)
    for name, text, value, known_as in (
        ("requests_running", "Completions being computed", engine.running, "num_requests_running"),
        ("requests_waiting", "Completions waiting", engine.waiting, "num_requests_waiting"),
        ("kv_cache_usage_ratio", "Share of cache blocks in use", usage, "kv_cache_usage_perc"),
        ("device_memory_bytes", f"Memory allocated{_ON_CPU}", engine.memory_allocated, ""),
        ("device_memory_peak_bytes", f"Most allocated{_ON_CPU}", engine.memory_peak, ""),
    ):
        yield Reading(name, text, value, Kind.GAUGE, known_as)
    for name, text, count in (
        ("prompt_tokens", "Prompt tokens scheduled", engine.prompt_tokens),
        ("generation_tokens", "Tokens sampled", engine.generated),
        ("prefix_cache_queries", "Prompt tokens looked up", engine.prefix_tokens_queried),
        ("prefix_cache_hits", "Prompt tokens found", engine.prefix_tokens_hit),
    ):
        yield Reading(name, text, count, Kind.COUNTER, known_as=name)
    for name, text, count in (
        ("prefix_cache_evictions", "Cached blocks given up", engine.evictions),
        ("preemptions", "Completions put back to the queue", engine.preemptions),
        ("engine_steps_failed", "Steps that failed", engine.steps_failed),
        (
            "logits_not_finite",
            "Completions ended by NaN or infinite logits",
            engine.not_a_number,
        ),
    ):
        yield Reading(name, text, count, Kind.COUNTER)


def _calls(ledger: Ledger) -> Iterator[Metric]:
    finished = CounterMetricFamily(
        "quire_requests_finished", "Completions ended", labels=["reason"]
    )
    for reason in FinishReason:
        finished.add_metric([reason.value], ledger.finished[reason])
    yield finished
    rpcs = CounterMetricFamily("quire_rpcs", "Calls ended", labels=["method", "code"])
    for (method, code), count in list(ledger.rpcs.items()):
        rpcs.add_metric([method, code], count)
    yield rpcs


def _steps(engine: EngineStats) -> Metric:
    steps = CounterMetricFamily("quire_engine_steps", "Steps of the engine", labels=["kind"])
    steps.add_metric(["graph"], engine.steps_graph)
    steps.add_metric(["eager"], engine.steps_eager)
    return steps


def _build_info(build: Build) -> Metric:
    labels = ["version", "python", "model_name", "fingerprint", "device", "dtype"]
    info = GaugeMetricFamily("quire_build_info", "1; its labels say what runs", labels=labels)
    shown = (build.version, platform.python_version(), build.model, build.fingerprint)
    info.add_metric([*shown, build.device, build.dtype], 1.0)
    return info


def _cache_config(engine: EngineStats, build: Build) -> Metric:
    """The cache's size, with which schedulers convert a share of the cache into tokens."""
    labels = {"block_size": str(build.block_size), "num_gpu_blocks": str(engine.blocks_total)}
    config = GaugeMetricFamily(
        f"{THEIRS}cache_config_info",
        "1; its labels say how large the cache is",
        labels=list(labels),
    )
    config.add_metric(list(labels.values()), 1.0)
    return config


def _step_seconds(step_times: StepTimes) -> Metric:
    metric = HistogramMetricFamily(
        "quire_engine_step_seconds", "A step's time, by what it holds", labels=["kind"]
    )
    for kind, histogram in step_times.histograms.items():
        metric.add_metric([kind], *Cumulative.of(histogram))
    return metric
