"""What a configuration would take, told without loading it."""

from quire.engine.config import EngineConfig
from quire.engine.loop import sizing
from quire.engine.model.shape import model_config
from quire.service.models.resolve import resolve

_GIB, _KIB = 1 << 30, 1 << 10


def report(config: EngineConfig) -> str:
    """Weights, cache bytes a token, blocks, and how many full-length requests fit."""
    resolved = resolve(config)
    config = config.replace(model=resolved.engine_model)
    plan = sizing.plan(config, model_config(config))
    note = " (an estimate: a step's own memory is not counted)" if plan.estimated else ""
    rows = [
        ("model", resolved.name),
        ("device", plan.device),
        ("dtype", plan.dtype),
        ("weights", f"{plan.weight_bytes / _GIB:.2f} GiB"),
        ("KV cache", f"{plan.kv_cache_bytes / _GIB:.2f} GiB{note}"),
        ("KV bytes a token", f"{plan.kv_bytes_per_token} ({plan.kv_bytes_per_token / _KIB:g} KiB)"),
        ("blocks", f"{plan.num_blocks} of {plan.block_size} tokens"),
        ("max_model_len", str(plan.max_model_len)),
        ("full-length requests that fit", str(plan.full_length_sequences)),
    ]
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:<{width}}  {value}\n" for name, value in rows)
