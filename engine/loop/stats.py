"""What the engine reports: EngineInfo once, EngineStats as a snapshot after a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from quire.engine.model.config import GenerationDefaults
from quire.engine.scheduling.block_pool import BlockPool
from quire.engine.scheduling.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Known once the engine is ready, and constant from then on. Sizes in bytes."""

    architecture: str
    fingerprint: str
    parameters: int
    vocab_size: int
    max_model_len: int
    dtype: str
    device: str
    block_size: int
    num_blocks: int
    kv_bytes_per_token: int
    weight_bytes: int
    kv_cache_bytes: int
    device_memory_total: int
    eos_token_ids: tuple[int, ...]
    generation: GenerationDefaults
    options: dict[str, str]
    hidden_size: int = 0
    """Numbers of a hidden state, and so of an embedding."""
    embeds_only: bool = False
    """The model has no output head: nothing is generated, and nothing scored."""
    numerics: str = ""
    """What can change a token's last bits beside what the fingerprint covers."""
    kv_cache_dtype: str = ""
    """Data type of keys and values, as torch names it."""


class EngineStats(NamedTuple):
    """Gauges and counters of one moment. Counters only rise. Blocks are those of all pools: of two
    where some layers have a window and others see all. Memory in bytes: memory_allocated and
    memory_peak are rank 0's; rank_memory holds both of every rank, and is empty for one alone.

    A tuple, as steps make one at both ends of a link: a frozen dataclass takes 6 µs."""

    running: int = 0
    waiting: int = 0
    blocks_total: int = 0
    blocks_free: int = 0
    blocks_cached: int = 0
    blocks_in_use: int = 0
    blocks_shared: int = 0
    prefix_tokens_queried: int = 0
    prefix_tokens_hit: int = 0
    evictions: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    prefill_computed: int = 0
    generated: int = 0
    discarded: int = 0
    steps_total: int = 0
    steps_graph: int = 0
    steps_eager: int = 0
    steps_mixed: int = 0
    steps_failed: int = 0
    not_a_number: int = 0
    memory_allocated: int = 0
    memory_peak: int = 0
    rank_memory: tuple[tuple[int, int], ...] = ()


def snapshot(
    scheduler: Scheduler,
    graph_steps: int = 0,
    eager_steps: int = 0,
    memory: tuple[int, int] = (0, 0),
    rank_memory: tuple[tuple[int, int], ...] = (),
) -> EngineStats:
    """The gauges and counters of scheduler and pools. memory: bytes allocated, and at the peak."""
    pool, counters = scheduler.pool, scheduler.counters
    stats = EngineStats(
        running=scheduler.num_running,
        waiting=scheduler.num_waiting,
        blocks_total=pool.num_usable,
        blocks_free=pool.num_free,
        blocks_cached=pool.num_cached,
        blocks_in_use=pool.num_usable - pool.num_free,
        blocks_shared=pool.num_shared,
        prefix_tokens_queried=counters.prefix_queried,
        prefix_tokens_hit=counters.prefix_hit,
        evictions=pool.evictions,
        preemptions=counters.preemptions,
        prompt_tokens=counters.prompt_tokens,
        prefill_computed=counters.prefill_computed,
        generated=counters.generated,
        discarded=counters.discarded,
        steps_total=counters.steps,
        steps_graph=graph_steps,
        steps_eager=eager_steps,
        steps_mixed=counters.mixed_steps,
        steps_failed=counters.failed_steps,
        not_a_number=counters.not_a_number,
        memory_allocated=memory[0],
        memory_peak=memory[1],
        rank_memory=rank_memory,
    )
    pools = scheduler.pools
    return stats if len(pools) == 1 else _of_all(stats, pools)


def _of_all(stats: EngineStats, pools: Sequence[BlockPool]) -> EngineStats:
    """The same counters summed over several pools."""
    total, free = sum(pool.num_usable for pool in pools), sum(pool.num_free for pool in pools)
    return stats._replace(
        blocks_total=total,
        blocks_free=free,
        blocks_in_use=total - free,
        blocks_cached=sum(pool.num_cached for pool in pools),
        blocks_shared=sum(pool.num_shared for pool in pools),
        evictions=sum(pool.evictions for pool in pools),
    )
