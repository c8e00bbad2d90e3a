"""Prometheus metrics on a port of their own, made at each scrape from what is counted anyway.

Invariant: serving a request never touches a metric; no label holds a key, a peer or a request.
"""

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers are; the engine's are None until it is ready."""

    ledger: Ledger
    engine: Callable[[], EngineStats | None]
    step_times: Callable[[], StepTimes | None]
    step_hung: Callable[[], bool]
    build: Callable[[], "Build | None"] = lambda: None


@dataclass(frozen=True, slots=True)
class Build:
    """What runs: known once the model is loaded. block_size: tokens of a cache block."""

    version: str
    model: str
    fingerprint: str
    device: str
    dtype: str
    block_size: int

    @classmethod
    def of(cls, version: str, model: str, info: EngineInfo) -> "Build":
        """Of a model that was loaded. model: its name."""
        return cls(version, model, info.fingerprint, info.device, info.dtype, info.block_size)


class QuireCollector(Collector):
    """Reads everything at the moment of the scrape."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        yield from _service_metrics(self._sources.ledger)
        engine, step_times = self._sources.engine(), self._sources.step_times()
        if engine is not None:
            yield from _engine_metrics(engine)
            build = self._sources.build()
            if build is not None:
                yield _build_info(build)
                yield from _scheduler_metrics(engine, build)
        if step_times is not None:
            yield _step_seconds(step_times)
        hung = float(self._sources.step_hung())
        yield _gauge("quire_step_hung", "1 while a step has taken longer than it may", hung)


def _service_metrics(ledger: Ledger) -> Iterator[Metric]:
    yield _histogram(
        "quire_time_to_first_token_seconds",
        "From acceptance to the first token",
        ledger.time_to_first_token,
    )
    yield _histogram(
        "quire_inter_token_latency_seconds",
        "Between consecutive tokens of one completion",
        ledger.inter_token_latency,
    )
    yield _histogram(
        "quire_request_queue_seconds",
        "From acceptance to the first time scheduled",
        ledger.queue_time,
    )
    yield _histogram(
        "quire_e2e_request_latency_seconds",
        "From acceptance to the end of the call",
        ledger.end_to_end,
    )
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
    yield _counter("quire_delivered_tokens", "Tokens delivered to streams", ledger.delivered)


def _engine_metrics(engine: EngineStats) -> Iterator[Metric]:
    yield _gauge("quire_requests_running", "Completions being computed", engine.running)
    yield _gauge("quire_requests_waiting", "Completions waiting", engine.waiting)
    usage = engine.blocks_in_use / max(engine.blocks_total, 1)
    yield _gauge("quire_kv_cache_usage_ratio", "Share of cache blocks in use", usage)
    yield _counter("quire_prompt_tokens", "Prompt tokens scheduled", engine.prompt_tokens)
    yield _counter("quire_generation_tokens", "Tokens sampled", engine.generated)
    yield _counter(
        "quire_prefix_cache_queries", "Prompt tokens looked up", engine.prefix_tokens_queried
    )
    yield _counter("quire_prefix_cache_hits", "Prompt tokens found", engine.prefix_tokens_hit)
    yield _counter("quire_prefix_cache_evictions", "Cached blocks given up", engine.evictions)
    yield _counter("quire_preemptions", "Completions put back to the queue", engine.preemptions)
    steps = CounterMetricFamily("quire_engine_steps", "Steps of the engine", labels=["kind"])
    steps.add_metric(["graph"], engine.steps_graph)
    steps.add_metric(["eager"], engine.steps_eager)
    yield steps
    yield _counter("quire_engine_steps_failed", "Steps that failed", engine.steps_failed)
    yield _counter(
        "quire_logits_not_finite",
        "Completions ended by NaN or infinite logits",
        engine.not_a_number,
    )
    yield _gauge("quire_device_memory_bytes", "Memory allocated", engine.memory_allocated)
    yield _gauge("quire_device_memory_peak_bytes", "Most allocated at once", engine.memory_peak)


def _build_info(build: Build) -> Metric:
    labels = ["version", "python", "model_name", "fingerprint", "device", "dtype"]
    info = GaugeMetricFamily("quire_build_info", "1; its labels say what runs", labels=labels)
    shown = (build.version, platform.python_version(), build.model, build.fingerprint)
    info.add_metric([*shown, build.device, build.dtype], 1.0)
    return info


def _scheduler_metrics(engine: EngineStats, build: Build) -> Iterator[Metric]:
    """Under the names by which schedulers of inference (the Gateway API's, for one) know them."""
    usage = engine.blocks_in_use / max(engine.blocks_total, 1)
    for name, text, value in (
        ("vllm:num_requests_running", "Completions being computed", engine.running),
        ("vllm:num_requests_waiting", "Completions waiting", engine.waiting),
        ("vllm:kv_cache_usage_perc", "Share of cache blocks in use, 0 to 1", usage),
    ):
        gauge = GaugeMetricFamily(name, text, labels=["model_name"])
        gauge.add_metric([build.model], float(value))
        yield gauge
    config = GaugeMetricFamily(
        "vllm:cache_config_info", "1; the cache", labels=["block_size", "num_gpu_blocks"]
    )
    config.add_metric([str(build.block_size), str(engine.blocks_total)], 1.0)
    yield config


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _step_seconds(step_times: StepTimes) -> Metric:
    metric = HistogramMetricFamily(
        "quire_engine_step_seconds", "A step's time, by what it holds", labels=["kind"]
    )
    for kind, histogram in step_times.histograms.items():
        metric.add_metric([kind], _buckets(histogram), histogram.sum)
    return metric


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, buckets=_buckets(histogram), sum_value=histogram.sum)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus' are cumulative."""
    counts, total = list(histogram.counts), 0
    buckets = []
    for bound, count in zip((*histogram.bounds, float("inf")), counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
    return buckets
