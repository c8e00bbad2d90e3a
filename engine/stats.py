"""What the engine tells of itself: EngineInfo once, EngineStats as a snapshot after each step."""

from dataclasses import dataclass

from quire.engine.model_config import GenerationDefaults


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


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges and counters of one moment. Counters only rise. Memory in bytes.

    busy_since: time.monotonic() at which the present step began, None between steps.
    """

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
    memory_allocated: int = 0
    memory_peak: int = 0
    busy_since: float | None = None
