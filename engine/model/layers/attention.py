"""Attention over the paged cache: one-token rows and longer rows, each through its kernel.

Invariant: keys and values of all tokens of the step are written before any is read, so a prompt
sees itself and every row sees all that came before it; but for the token of a row of one, which
only that row sees: the kernel that reads it may be the one that writes it.
"""

from torch import Tensor

from quire.engine.model.forward_batch import ForwardBatch
from quire.kernels.ops import Ops
from quire.kernels.padding import new_rows
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
    caches = (k_cache, v_cache)
    if q_norm is None or k_norm is None:
        q = ops.rope_kv_write(qkv, rope, batch.positions, batch.slot_mapping, *caches)
        return attend(ops, q, *caches, batch, scale, window)
    norms, decode = (q_norm, k_norm, eps, rope), batch.num_decode_rows
    first = (batch.positions[:decode], batch.slot_mapping[:decode], *caches)
    contexts = (batch.block_tables[:decode], batch.context_lens[:decode])
    ones = (qkv[:decode], *norms, *first, *contexts, scale, batch.max_context_len)
    if decode == batch.num_rows:  # one token each: all of it is one kernel
        attended = ops.rope_decode_attention(*ones, narrow=narrow)
        return attended if isinstance(attended, Quantized) else attended.flatten(1)
    longer = (batch.positions[decode:], batch.slot_mapping[decode:], *caches)
    q = ops.qk_norm_rope_kv_write(qkv[decode:], *norms, *longer)
    out = new_rows(q, len(qkv), *q.shape[1:])
    if decode:
        ops.rope_decode_attention(*ones, out=out[:decode])
    _prefill(ops, q, *caches, batch, scale, window, out[decode:])
    return out.flatten(1)


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
    out = new_rows(q, *q.shape)
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
