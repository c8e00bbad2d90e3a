"""A plan's copies of whole blocks, in the cache and in that of layers with a window.

Invariant: a request that copies in one cache copies in the other, so a plan without copies has none
of either kind.
"""

import torch
from torch import Tensor

from quire.engine.model.forward_batch import KVCache
from quire.engine.runner.staging import Staging
from quire.kernels.ops import Ops

Pairs = tuple[tuple[int, int], ...]  # of blocks: source, target


def stage_copies(staging: Staging, copies: Pairs, window_copies: Pairs = ()) -> None:
    """Put the pairs into the step's upload."""
    _stage(staging, "copies", copies)
    if window_copies:
        _stage(staging, "window_copies", window_copies)


def _stage(staging: Staging, name: str, pairs: Pairs) -> None:
    """[2, pairs] int64."""
    blocks = [block for side in zip(*pairs, strict=True) for block in side]
    staging.put_ints(name, blocks, "q", shape=(2, len(pairs)))


def make_copies(staging: Staging, ops: Ops, kv: KVCache) -> None:
    """Launch the copies that were staged, if there are any."""
    if (pairs := staging.find("copies")) is None:
        return
    source, target = pairs
    ops.copy_blocks(kv.k, kv.v, source, target)
    if kv.window is not None:
        source, target = staging.get("window_copies")
        ops.copy_blocks(kv.window.k, kv.window.v, source, target)


def warm_copies(ops: Ops, kv: KVCache) -> None:
    """Copy the null blocks onto themselves, which compiles what copying launches."""
    here: Tensor = torch.zeros(1, dtype=torch.int64, device=kv.k.device)
    for cache in (kv, kv.window):
        if cache is not None:
            ops.copy_blocks(cache.k, cache.v, here, here)
