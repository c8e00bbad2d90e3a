"""What some engine says that it is, for tests in which nobody runs it."""

from quire.engine.loop.stats import EngineInfo
from quire.engine.model.config import GenerationDefaults

INFO = EngineInfo(
    architecture="A",
    fingerprint="f",
    parameters=1,
    vocab_size=2,
    max_model_len=3,
    dtype="d",
    device="e",
    block_size=4,
    num_blocks=5,
    kv_bytes_per_token=6,
    weight_bytes=7,
    kv_cache_bytes=8,
    device_memory_total=9,
    eos_token_ids=(10, 11),
    generation=GenerationDefaults(temperature=0.5, top_k=3),
    options={"model": "x"},
)
