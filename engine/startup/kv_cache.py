"""Allocates the KV cache and builds the scheduler over its blocks.

Invariant: a pool has exactly the blocks of its cache. Where some layers have a window there are two
caches and two pools, whose prefix caches hash alike.
"""

import math
import secrets
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from quire.engine.model.forward_batch import KVCache
from quire.engine.model.registry import Model
from quire.engine.scheduling.block_pool import BlockPool
from quire.engine.scheduling.options import SchedulerOptions
from quire.engine.scheduling.scheduler import Scheduler
from quire.engine.scheduling.two_pools import TwoPoolScheduler


def allocate_cache(
    model: Model, num_blocks: int, window_blocks: int, block_size: int, dtype: torch.dtype
) -> KVCache:
    """This rank's heads, zeros. Blocks include the null blocks; window_blocks: 0 where all layers
    are alike."""
    device = model.device

    def zeros(size: tuple[int, ...]) -> Tensor:
        if device.type == "cpu":
            return _lazy_zeros(size, dtype)
        return torch.zeros(size, dtype=dtype, device=device)

    blocks = num_blocks, window_blocks
    return KVCache.made(model.config, model.num_kv_heads, blocks, block_size, zeros)


def scheduler_over(
    kv: KVCache,
    window: int | None,
    *,
    caching: bool = True,
    seed: int | None = None,
    **options: Unpack[SchedulerOptions],
) -> Scheduler:
    """A scheduler that gives out the blocks of a cache. window: of the layers that have one.
    caching, seed: of prefixes."""
    if kv.window is not None and seed is None:
        seed = secrets.randbits(64)  # both pools hash alike
    pool = BlockPool(kv.num_blocks, kv.block_size, caching, seed)
    if kv.window is None:
        return Scheduler(pool, window=window, **options)
    assert window is not None
    window_pool = BlockPool(kv.window.num_blocks, kv.block_size, caching, seed)
    return TwoPoolScheduler(pool, window_pool, window=window, **options)


def _lazy_zeros(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros on the CPU that take memory as they are touched: torch.zeros would write every page,
    seconds a GiB where pages are slow to get."""
    num_bytes = math.prod(size) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(size)
