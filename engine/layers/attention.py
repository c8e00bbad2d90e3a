"""Attention over the paged cache: one-token rows and longer rows, each through its kernel.

Invariant: keys and values of all tokens of the step are written before any is read, so a prompt
sees itself and every row sees all that came before it.
"""

import torch
from torch import Tensor

from quire.engine.forward_batch import ForwardBatch
from quire.kernels.ops import Ops


def paged_attention(
    ops: Ops, q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: ForwardBatch, scale: float
) -> Tensor:
    """q: [T, Hq, D], cache already written -> [T, Hq * D]."""
    decode = batch.num_decode_rows
    if decode == batch.num_rows:
        return _decode(ops, q, k_cache, v_cache, batch, scale).flatten(1)
    if decode == 0:
        return _prefill(ops, q, k_cache, v_cache, batch, scale).flatten(1)
    # Two kernels, one result: decode rows come first.
    parts = (
        _decode(ops, q[:decode], k_cache, v_cache, batch, scale),
        _prefill(ops, q[decode:], k_cache, v_cache, batch, scale),
    )
    return torch.cat(parts).flatten(1)


def _decode(
    ops: Ops, q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: ForwardBatch, scale: float
) -> Tensor:
    rows = batch.num_decode_rows
    return ops.decode_attention(
        q,
        k_cache,
        v_cache,
        batch.block_tables[:rows],
        batch.context_lens[:rows],
        scale,
        batch.max_context_len,
    )


def _prefill(
    ops: Ops, q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: ForwardBatch, scale: float
) -> Tensor:
    first = batch.num_decode_rows
    assert batch.prefill_start_loc is not None
    return ops.prefill_attention(
        q,
        k_cache,
        v_cache,
        batch.block_tables[first:],
        batch.prefill_start_loc,
        batch.context_lens[first:],
        scale,
        batch.max_query_len,
        batch.max_context_len,
    )
