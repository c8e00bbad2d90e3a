"""Attention over the paged cache: one-token rows and longer rows, each through its kernel.

Invariant: keys and values of all tokens of the step are written before any is read, so a prompt
sees itself and every row sees all that came before it.
"""

import torch
from torch import Tensor

from quire.engine.model.forward_batch import ForwardBatch
from quire.kernels.ops import Ops
from quire.kernels.weight import Quantized


def paged_attention(
    ops: Ops,
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    rope: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    scale: float,
    window: int = 0,
    *,
    narrow: bool = False,
) -> Tensor | Quantized:
    """Norm of q and k, rotation, cache write and attention of a step's tokens.

    qkv: [T, (Hq + 2 * Hkv) * D]; q_norm, k_norm: [D], or None for models without these norms;
    rope: [positions, D]; caches: [num_blocks, Hkv, block_size, D] -> [T, Hq * D]. window: tokens
    that each sees, itself among them (of models without these norms); 0: all. narrow: the result
    goes to a product of an FP8 weight alone, and may come as that takes it.
    """
    where = (rope, batch.positions, batch.slot_mapping, k_cache, v_cache)
    if q_norm is None or k_norm is None:
        q = ops.rope_kv_write(qkv, *where)
    elif batch.num_decode_rows == batch.num_rows:  # one token each: all of it is one kernel
        rows = (batch.block_tables, batch.context_lens)
        attended = ops.rope_decode_attention(
            qkv, q_norm, k_norm, eps, *where, *rows, scale, batch.max_context_len, narrow=narrow
        )
        return attended if isinstance(attended, Quantized) else attended.flatten(1)
    else:
        q = ops.qk_norm_rope_kv_write(qkv, q_norm, k_norm, eps, *where)
    return attend(ops, q, k_cache, v_cache, batch, scale, window)


def attend(
    ops: Ops,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    scale: float,
    window: int = 0,
) -> Tensor:
    """Attention of a step's tokens over caches that hold their keys and values.

    q: [T, Hq, D] -> [T, Hq * D]. The rest as above.
    """
    decode = batch.num_decode_rows
    if decode == batch.num_rows:
        return _decode(ops, q, k_cache, v_cache, batch, scale, window).flatten(1)
    if decode == 0:
        return _prefill(ops, q, k_cache, v_cache, batch, scale, window).flatten(1)
    # Two kernels write one result: decode rows come first.
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    _decode(ops, q[:decode], k_cache, v_cache, batch, scale, window, out[:decode])
    _prefill(ops, q[decode:], k_cache, v_cache, batch, scale, window, out[decode:])
    return out.flatten(1)


def _decode(
    ops: Ops,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    scale: float,
    window: int,
    out: Tensor | None = None,
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
        out=out,
        window=window,
    )


def _prefill(
    ops: Ops,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    scale: float,
    window: int,
    out: Tensor | None = None,
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
        out=out,
        window=window,
    )
