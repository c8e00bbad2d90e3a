"""`--dry-run`: what a configuration would need, and whether it fits, without loading it.

Invariant: the verdict is the engine's own (`fit`). If the engine would start with a cache that does
not hold the longest request, that is no failure here either.
"""

import torch

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.model.config import ModelConfig
from quire.engine.model.load_config import model_config
from quire.engine.runner import exact_mode
from quire.engine.startup import fit, ranks_needed, sizing
from quire.engine.startup.sizing import shown
from quire.service.models.resolve import resolve

_KIB = 1 << 10


def report(config: EngineConfig) -> tuple[str, bool]:
    """Sizes, what one full request needs, a verdict and what to change; and whether it starts.
    Raises ConfigError."""
    _refuse_without_card(config)
    resolved = resolve(config)
    config = config.replace(model=resolved.engine_model)
    shape = model_config(config)
    plan = sizing.plan(config, shape)
    _refuse_inexact(config, shape)
    verdict, needed = fit.judge(config, plan), plan.blocks_of_a_sequence
    size = config.tensor_parallel_size
    nodes = f" on {config.nnodes} nodes" if config.nnodes > 1 else ""
    note = " (an estimate: a step's own memory is not counted)" if plan.estimated else ""
    rows = [
        ("model", resolved.name),
        ("device", plan.device),
        *([("ranks", f"{size}{nodes}; sizes are of all of them together")] if size > 1 else []),
        ("dtype", plan.dtype + _stored(config)),
        ("memory", shown(max(plan.memory_bytes, 0))),
        ("weights", shown(plan.weight_bytes) + ("" if shape.fp8 is None else ", FP8")),
        ("KV cache", f"{shown(plan.kv_cache_bytes)}{note}"),
        ("KV cache dtype", plan.kv_cache_dtype),
        ("KV bytes a token", f"{plan.kv_bytes_per_token} ({plan.kv_bytes_per_token / _KIB:g} KiB)"),
        ("blocks", f"{plan.num_blocks} of {plan.block_size} tokens"),
        *([("blocks of windows", _windows(plan))] if plan.windows is not None else []),
        ("max_model_len", str(plan.max_model_len)),
        ("one request of max_model_len", f"{needed} blocks, {shown(plan.bytes_of_blocks(needed))}"),
        ("full-length requests that fit", str(plan.full_length_sequences if verdict.fits else 0)),
        ("longest request", f"{_longest(plan) if verdict.starts else 0} tokens"),
        ("verdict", _told(verdict)),
    ]
    if not verdict.fits:
        ways = ranks_needed.advice(config, shape, plan) if verdict.too_large else ()
        rows.append(("to change", ", or ".join((*ways, *verdict.advice))))
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:<{width}}  {value}\n" for name, value in rows), verdict.starts


def _refuse_without_card(config: EngineConfig) -> None:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device = cuda: this machine has no usable CUDA device, and how much memory it has is "
            "what a dry run compares with: run it where the device is, or with device = cpu, "
            "which shows what weights and cache take"
        )


def _refuse_inexact(config: EngineConfig, shape: ModelConfig) -> None:
    """Raises ConfigError where `exact = on` would end the start."""
    if config.exact == "on":
        device = sizing.resolve_device(config)
        exact_mode.is_wanted(config, shape, sizing.resolve_dtype(config, shape, device), device)


def _told(verdict: fit.Verdict) -> str:
    if verdict.fits:
        return "fits"
    return f"{'starts' if verdict.starts else 'does not fit'}: {verdict.reason}"


def _longest(plan: sizing.SizingPlan) -> int:
    return min(plan.max_model_len, plan.cache_tokens)


def _windows(plan: sizing.SizingPlan) -> str:
    return f"{plan.num_window_blocks}, of layers with a window; the others have those above"


def _stored(config: EngineConfig) -> str:
    return ", matrices as int8" if config.int8 else ""
