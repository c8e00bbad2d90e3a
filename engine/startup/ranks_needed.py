"""How many ranks a model that does not fit would need.

On GPUs each rank has a card of its own; ranks on one machine's CPU share its memory, so there the
answer is a number of machines.

Invariant: the sizes are those that the engine itself would compute for that many ranks, and the
answer is the smallest number of ranks that can share the model.
"""

from dataclasses import dataclass, replace

import torch

from quire.engine.config import MAX_RANKS, EngineConfig
from quire.engine.errors import CapacityError, ConfigError
from quire.engine.model.config import ModelConfig
from quire.engine.model.load_config import model_config
from quire.engine.startup import fit, sizing
from quire.engine.startup.sizing import SizingPlan, shown
from quire.engine.startup.window_share import WindowShare


@dataclass(frozen=True, slots=True)
class Share:
    """What each of `size` ranks needs, in bytes: with the smallest possible cache, and with one
    that holds a request of max_model_len."""

    size: int
    least_bytes: int
    whole_bytes: int


def share_of(config: EngineConfig, shape: ModelConfig, plan: SizingPlan, size: int) -> Share:
    """plan: the given configuration's, for device, dtype and lengths. Raises ConfigError if this
    many ranks cannot share the model."""
    alone = {"nnodes": 1, "node_rank": 0, "master_addr": None, "master_port": None}
    config = config.replace(tensor_parallel_size=size, join_secret_file=None, **alone)
    dtype: torch.dtype = getattr(torch, plan.dtype)
    gpu = plan.device != "cpu"
    fixed = sizing.weight_bytes(config, shape, dtype) // size
    fixed += sizing.graph_bytes(config, shape, dtype) if gpu else 0
    cache_dtype = sizing.resolve_cache_dtype(config, dtype, torch.device(plan.device))
    per_token = sizing.kv_bytes_per_token(config, shape, cache_dtype)
    windows = WindowShare.of(config, shape, per_token)
    cache = replace(plan, kv_bytes_per_token=per_token, windows=windows)
    least, whole = (cache.bytes_of_blocks(blocks) for blocks in (1, plan.blocks_of_a_sequence))
    return Share(size, fixed + least // size, fixed + whole // size)


def smallest(config: EngineConfig, shape: ModelConfig, plan: SizingPlan, room: int) -> Share | None:
    """The fewest ranks, more than there are, that start with `room` bytes each."""
    for size in range(config.tensor_parallel_size + 1, MAX_RANKS + 1):
        try:
            share = share_of(config, shape, plan, size)
        except ConfigError:
            continue
        if share.least_bytes <= room:
            return share
    return None


def advice(config: EngineConfig, shape: ModelConfig, plan: SizingPlan) -> tuple[str, ...]:
    """How to share a model that is too large: nothing, or one way."""
    gpu = plan.device != "cpu"
    room = plan.memory_bytes // (config.tensor_parallel_size if gpu else config.nnodes)
    found = smallest(config, shape, plan, room)
    if found is None:
        return ()
    size, each = found.size, f"{shown(found.least_bytes)} of {shown(room)} each"
    if gpu:
        return (f"share it over {size} such cards: tensor_parallel_size = {size} ({each})",)
    both = f"tensor_parallel_size = {size}, nnodes = {size}"
    return (f"share it over {size} such machines: {both} ({each})",)


def refuse_too_large(config: EngineConfig) -> None:
    """Raises CapacityError for a model whose weights leave no room for any cache, before anything
    is loaded or started."""
    shape = model_config(config)
    plan = sizing.plan(config, shape)
    verdict = fit.judge(config, plan)
    if verdict.too_large:
        ways = (*advice(config, shape, plan), *verdict.advice)
        raise CapacityError(f"{verdict.reason}; {', or '.join(ways)}")
