"""The Stats answer: the engine's snapshot and the service's ledger as one message.

Counters of all clients reveal what one of them asks and gets: the difference of two answers is the
length of a prompt. So they are for operators; others learn what is served, and on what.

Invariant: it is a snapshot; what the caller may not see is left unset.
"""

import asyncio
import time
from collections.abc import Callable

import grpc

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.loop.stats import EngineStats
from quire.engine.request import FinishReason
from quire.service.admission.rate_limits import Throttle, TokenBucket
from quire.service.errors import Refusal
from quire.service.rpc.served_model import ServedModel
from quire.service.telemetry.counters import Ledger
from quire.service.telemetry.histogram import Histogram
from quire.v1 import inference_pb2 as pb

# Of all callers together; either takes the engine's thread time.
MAPS_A_SECOND, MAPS_AT_ONCE = 4.0, 20.0
FLUSHES_A_SECOND, FLUSHES_AT_ONCE = 1.0, 5.0
ANSWERS_A_SECOND, ANSWERS_AT_ONCE = 20.0, 100.0  # of each client
MAX_PATIENCE = 1.0  # seconds that an answer may wait for its turn
# Options that tell of the machine: its paths and network, and what parts hashes of prefixes.
_OF_OPERATORS = frozenset(
    {"join_secret_file", "master_addr", "master_port", "model", "prefix_cache_seed"}
)


class StatsReporter:
    """Builds StatsResponse."""

    def __init__(
        self,
        engine: AsyncEngine,
        model: ServedModel,
        ledger: Ledger,
        version: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._model = model
        self._ledger = ledger
        self._version = version
        self._clock = clock
        self._ready_at = clock()
        self._maps = TokenBucket(MAPS_A_SECOND, MAPS_AT_ONCE, self._ready_at)
        self._flushes = TokenBucket(FLUSHES_A_SECOND, FLUSHES_AT_ONCE, self._ready_at)
        self._throttle = Throttle(ANSWERS_A_SECOND, ANSWERS_AT_ONCE, MAX_PATIENCE, clock)

    async def turn(self, client: str) -> None:
        """Wait until this client may be answered: polling must not take the event loop from clients
        that generate. Raises Refusal if too many of its calls wait already."""
        wait, has_one = self._throttle.turn(client)
        if not has_one:
            raise _too_often(f"Stats: at most {self._throttle.rate:g} a second of one client", wait)
        if wait > 0:
            await asyncio.sleep(wait)

    def allow_block_map(self, *, operator: bool) -> None:
        """Raises Refusal."""
        _operators_only("include_block_map = true", operator=operator)
        _take_one("include_block_map", self._maps, self._clock())

    def allow_watch(self, *, operator: bool) -> None:
        """A watch starts with all cached blocks, which costs as much as a map. Raises Refusal."""
        _operators_only("SubscribeKvEvents", operator=operator)
        _take_one("SubscribeKvEvents", self._maps, self._clock())

    def allow_loads(self, *, operator: bool) -> None:
        """Raises Refusal."""
        _operators_only("GetLoads", operator=operator)

    def allow_requests(self, *, operator: bool) -> None:
        """Raises Refusal."""
        _operators_only("include_requests = true", operator=operator)

    def allow_flush(self, *, operator: bool) -> None:
        """Raises Refusal."""
        _operators_only("FlushCache", operator=operator)
        _take_one("FlushCache", self._flushes, self._clock())

    def served_model(self) -> pb.GetModelInfoResponse:
        """The answer of GetModelInfo, for any caller."""
        family = self._model.family
        return pb.GetModelInfoResponse(
            model=self._model_info(),
            version=self._version,
            has_chat_template=self._model.chat is not None,
            output_parser="" if family is None else family.name,
            eos_token_ids=self._model.eos_token_ids,
        )

    def response(self, block_map: bytes = b"", *, operator: bool = True) -> pb.StatsResponse:
        """The message; block_map: one byte a block, or empty. operator: whether the caller may
        know what all clients do."""
        return self._whole(block_map) if operator else self._served()

    def _served(self) -> pb.StatsResponse:
        """What is served and on what: nothing that a call changes."""
        info = self._model.info
        return pb.StatsResponse(
            model=self._model_info(),
            engine_config={n: v for n, v in info.options.items() if n not in _OF_OPERATORS},
            cache=pb.CacheStats(
                block_size=info.block_size,
                blocks_total=self._engine.stats().blocks_total,
                bytes_per_token=info.kv_bytes_per_token,
                dtype=info.kv_cache_dtype,
            ),
            memory=pb.DeviceMemory(
                total_bytes=info.device_memory_total,
                weights_bytes=info.weight_bytes,
                kv_cache_bytes=info.kv_cache_bytes,
            ),
            uptime_seconds=self._clock() - self._ready_at,
            version=self._version,
        )

    def _whole(self, block_map: bytes) -> pb.StatsResponse:
        engine, ledger, info = self._engine.stats(), self._ledger, self._model.info
        response = pb.StatsResponse(
            model=self._model_info(),
            engine_config=info.options,
            requests=self._requests(engine),
            cache=self._cache(engine),
            tokens=pb.TokenStats(
                prompt=engine.prompt_tokens,
                prefill_computed=engine.prefill_computed,
                generated=engine.generated,
                delivered=ledger.delivered,
                discarded=engine.discarded,
            ),
            steps=self._steps(engine),
            time_to_first_token_seconds=_histogram(ledger.time_to_first_token),
            inter_token_latency_seconds=_histogram(ledger.inter_token_latency),
            queue_time_seconds=_histogram(ledger.queue_time),
            memory=pb.DeviceMemory(
                total_bytes=info.device_memory_total,
                weights_bytes=info.weight_bytes,
                kv_cache_bytes=info.kv_cache_bytes,
                allocated_bytes=engine.memory_allocated,
                peak_bytes=engine.memory_peak,
                ranks=(
                    pb.RankMemory(allocated_bytes=allocated, peak_bytes=peak)
                    for allocated, peak in engine.rank_memory
                ),
            ),
            uptime_seconds=self._clock() - self._ready_at,
            version=self._version,
        )
        response.cache.block_map = block_map
        return response

    def _model_info(self) -> pb.ModelInfo:
        info = self._model.info
        return pb.ModelInfo(
            name=self._model.name,
            fingerprint=info.fingerprint,
            architecture=info.architecture,
            parameters=info.parameters,
            vocab_size=info.vocab_size,
            max_model_len=info.max_model_len,
            dtype=info.dtype,
            device=info.device,
            numerics=info.numerics,
        )

    def _requests(self, engine: EngineStats) -> pb.RequestStats:
        finished = self._ledger.finished
        return pb.RequestStats(
            running=engine.running,
            waiting=engine.waiting,
            accepted=self._ledger.accepted,
            finished_stop=finished[FinishReason.STOP],
            finished_length=finished[FinishReason.LENGTH],
            finished_cancelled=finished[FinishReason.CANCELLED],
            finished_error=finished[FinishReason.ERROR],
            refused=self._ledger.refused,
        )

    def _steps(self, engine: EngineStats) -> pb.StepStats:
        times = self._engine.step_times()
        kinds = {} if times is None else times.histograms
        return pb.StepStats(
            total=engine.steps_total,
            graph=engine.steps_graph,
            eager=engine.steps_eager,
            mixed=engine.steps_mixed,
            failed=engine.steps_failed,
            duration_seconds={kind: _histogram(times) for kind, times in kinds.items()},
        )

    def _cache(self, engine: EngineStats) -> pb.CacheStats:
        info = self._model.info
        return pb.CacheStats(
            block_size=info.block_size,
            blocks_total=engine.blocks_total,
            blocks_free=engine.blocks_free,
            blocks_cached=engine.blocks_cached,
            blocks_in_use=engine.blocks_in_use,
            blocks_shared=engine.blocks_shared,
            prefix_tokens_queried=engine.prefix_tokens_queried,
            prefix_tokens_hit=engine.prefix_tokens_hit,
            evictions=engine.evictions,
            preemptions=engine.preemptions,
            bytes_per_token=info.kv_bytes_per_token,
            dtype=info.kv_cache_dtype,
        )


def _operators_only(what: str, *, operator: bool) -> None:
    if not operator:
        raise Refusal(
            grpc.StatusCode.PERMISSION_DENIED,
            f"{what}: is for operators (a key's line with `operator`)",
            reason="OPERATORS_ONLY",
        )


def _take_one(what: str, bucket: TokenBucket, now: float) -> None:
    wait = bucket.wait(1.0, now)
    if wait > 0:
        raise _too_often(f"{what}: at most {bucket.rate:g} a second", wait)
    bucket.take(1.0, now)


def _too_often(message: str, retry_after: float) -> Refusal:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    return Refusal(code, message, reason="RATE_LIMITED", retry_after=retry_after)


def _histogram(histogram: Histogram) -> pb.Histogram:
    return pb.Histogram(bounds=histogram.bounds, counts=histogram.counts, sum=histogram.sum)
