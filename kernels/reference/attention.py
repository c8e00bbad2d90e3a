"""Rotary embedding, the write of keys and values, and attention over the paged cache, whose dtype
is the activations' or e4m3 (`kv_format.py`)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.kernels.reference.kv_format import as_stored, held

_TOKENS_AT_ONCE = 256  # what a core's cache holds of their fp32 copies


def qk_norm_rope_kv_write(
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
) -> Tensor:
    """Norm q and k per head, rotate both, write k and v to the cache; returns q: [T, Hq, D].

    qkv: [T, (Hq + 2 * Hkv) * D], heads of q, then k, then v. q_norm, k_norm: [D].
    cos_sin: [positions, D] fp32, D/2 cosines then D/2 sines. positions: [T]. Norm and rotation are
    computed in fp32 and rounded once. Source of the rotation: RoFormer (Su et al., 2021), halves
    rotated against each other as in Llama.
    """
    tokens, dim = qkv.shape[0], k_cache.shape[-1]
    if tokens > _TOKENS_AT_ONCE:
        shares = (x.split(_TOKENS_AT_ONCE) for x in (qkv, positions, slot_mapping))
        parts = [
            qk_norm_rope_kv_write(
                some, q_norm, k_norm, eps, cos_sin, places, slots, k_cache, v_cache
            )
            for some, places, slots in zip(*shares, strict=True)
        ]
        return torch.cat(parts)
    heads = qkv.view(tokens, -1, dim)
    kv_heads = k_cache.shape[1]
    q_heads = heads.shape[1] - 2 * kv_heads

    qk = heads[:, : q_heads + kv_heads].float()
    qk = qk * torch.rsqrt(qk.square().mean(-1, keepdim=True) + eps)
    first, second = qk.chunk(2, dim=-1)
    weight = torch.cat((q_norm.float().expand(q_heads, dim), k_norm.float().expand(kv_heads, dim)))
    w1, w2 = weight.chunk(2, dim=-1)
    rotated = _rotated(first * w1, second * w2, cos_sin[positions]).to(qkv.dtype)
    _write(rotated[:, q_heads:], heads[:, -kv_heads:], slot_mapping, k_cache, v_cache)
    return rotated[:, :q_heads]


def rope_kv_write(
    qkv: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
) -> Tensor:
    """Like qk_norm_rope_kv_write, for models whose q and k have no norm. Returns q: [T, Hq, D]."""
    heads = qkv.view(qkv.shape[0], -1, k_cache.shape[-1])
    kv_heads = k_cache.shape[1]
    first, second = heads[:, :-kv_heads].float().chunk(2, dim=-1)
    rotated = _rotated(first, second, cos_sin[positions]).to(qkv.dtype)
    _write(rotated[:, -kv_heads:], heads[:, -kv_heads:], slot_mapping, k_cache, v_cache)
    return rotated[:, :-kv_heads]


def kv_write(
    qkv: Tensor, bias: Tensor, slot_mapping: Tensor, k_cache: Tensor, v_cache: Tensor
) -> Tensor:
    """Add biases to q, k and v and write k and v to the cache, of models that do not rotate.

    qkv: as above, whose storage may be reused; bias: [(Hq + 2 * Hkv) * D]. Returns q: [T, Hq, D].
    """
    heads = qkv.add_(bias).view(qkv.shape[0], -1, k_cache.shape[-1])
    kv_heads = k_cache.shape[1]
    _write(
        heads[:, -2 * kv_heads : -kv_heads], heads[:, -kv_heads:], slot_mapping, k_cache, v_cache
    )
    return heads[:, : -2 * kv_heads]


def _rotated(first: Tensor, second: Tensor, cos_sin: Tensor) -> Tensor:
    """Halves of heads turned against each other. first, second: [T, heads, D / 2] fp32;
    cos_sin: [T, D] -> [T, heads, D] fp32."""
    cos, sin = cos_sin.unsqueeze(1).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _write(k: Tensor, v: Tensor, slot_mapping: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    """Put each token's keys and values into its slot. k, v: [T, Hkv, D]; slot_mapping: [T]."""
    _, kv_heads, block_size, dim = k_cache.shape
    block, offset = slot_mapping // block_size, slot_mapping % block_size
    head = torch.arange(kv_heads, device=k.device)
    where = ((block[:, None] * kv_heads + head) * block_size + offset[:, None]).view(-1)
    for cache, fresh in ((k_cache, k), (v_cache, v)):
        rows = as_stored(held(fresh, cache.dtype)).reshape(-1, dim)
        as_stored(cache).view(-1, dim).index_copy_(0, where, rows)


def _row_blocks(block_tables: Tensor, kv_heads: int, columns: int) -> Tensor:
    """Where each head's part of each block lies, in a cache seen as [blocks * Hkv, ...].

    block_tables: [R, >= columns] -> [R, Hkv, columns] int64.
    """
    heads = torch.arange(kv_heads, device=block_tables.device)
    return block_tables[:, None, :columns].long() * kv_heads + heads[None, :, None]


def _gathered(cache: Tensor, parts: Tensor, first: int, context: int) -> Tensor:
    """A row's keys or values from token `first` on, in token order, fp32: [Hkv, context - first,
    D]. parts: where its blocks lie, [Hkv, blocks]; those before `first` are not looked at."""
    _, kv_heads, block_size, dim = cache.shape
    skipped = first // block_size
    mine = parts[:, skipped : -(-context // block_size)].reshape(-1)
    flat = cache.view(-1, block_size * dim).index_select(0, mine).view(kv_heads, -1, dim)
    begin = skipped * block_size
    return flat[:, first - begin : context - begin].float()


def _one_token(q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
    """Softmax attention of one scaled token. q: [Hkv, G, D]; k, v: [Hkv, context, D], fp32."""
    weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1)
    return torch.bmm(weights, v, out=out) if out is not None else torch.bmm(weights, v)


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    scale: float,
    max_context_len: int,
    *,
    out: Tensor | None = None,
    window: int = 0,
) -> Tensor:
    """One query token a row against its whole context, grouped heads. Returns [R, Hq, D].

    q: [R, Hq, D]; block_tables: [R, >= blocks] int32; context_lens: [R], the new token included.
    max_context_len bounds context_lens (an int known to the host). A context of 0 gives zeros.
    out: [R, Hq, D] contiguous, to be written instead of a new tensor. window: only so many tokens
    are seen, the newest among them, and blocks before them are not looked at; 0: all.
    """
    rows, q_heads, dim = q.shape
    _, kv_heads, block_size, _ = k_cache.shape
    sums = torch.zeros(rows, kv_heads, q_heads // kv_heads, dim, device=q.device)
    scaled = q.reshape(sums.shape).float() * scale
    parts = _row_blocks(block_tables, kv_heads, -(-max_context_len // block_size))
    # Row by row: no row pays for the longest, and its result does not depend on the others.
    for row, context in enumerate(context_lens.tolist()):
        if context:
            first = max(context - window, 0) if window else 0
            k, v = (_gathered(cache, parts[row], first, context) for cache in (k_cache, v_cache))
            _one_token(scaled[row], k, v, sums[row])
    whole = sums.view(rows, q_heads, dim)
    return whole.to(q.dtype) if out is None else out.copy_(whole)


def rope_decode_attention(
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    scale: float,
    max_context_len: int,
    *,
    out: Tensor | None = None,
    narrow: bool = False,
) -> Tensor:
    """Rows of one token: qk_norm_rope_kv_write, then decode_attention. [R, Hq, D].

    out: as there, and then the result is never narrow.
    narrow: the result goes to a product of an FP8 weight and nowhere else, so it may come as that
    takes it (`Quantized`, [R, Hq * D]). Here it never does."""
    del narrow
    q = qk_norm_rope_kv_write(
        qkv, q_norm, k_norm, eps, cos_sin, positions, slot_mapping, k_cache, v_cache
    )
    where = (k_cache, v_cache, block_tables, context_lens)
    return decode_attention(q, *where, scale, max_context_len, out=out)


def prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    context_lens: Tensor,
    scale: float,
    max_query_len: int,
    max_context_len: int,
    *,
    out: Tensor | None = None,
    window: int = 0,
) -> Tensor:
    """Causal attention of each row's new tokens over its cached prefix and themselves.

    q: [T, Hq, D], rows packed one after the other; query_start_loc: [R + 1]; context_lens: [R],
    cached and new tokens together. A row's last query token sees its whole context. [T, Hq, D].
    out, window: as above, of each token.
    """
    del max_query_len  # sizes a kernel's grid; rows are walked here
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    _, q_heads, dim = q.shape
    _, kv_heads, block_size, _ = k_cache.shape
    parts = _row_blocks(block_tables, kv_heads, -(-max_context_len // block_size))
    starts = query_start_loc.tolist()
    for row, context in enumerate(context_lens.tolist()):
        begin, end = starts[row], starts[row + 1]
        if begin == end:
            continue
        first = max(context - (end - begin) + 1 - window, 0) if window else 0
        k, v = (_gathered(cache, parts[row], first, context) for cache in (k_cache, v_cache))
        queries = q[begin:end].float()
        if end - begin == 1:  # exactly as in decode_attention
            grouped = queries.view(kv_heads, -1, dim) * scale
            out[begin] = _one_token(grouped, k, v).view(q_heads, dim)
        else:
            out[begin:end] = _causal(queries, k, v, scale, window)
    return out


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> Tensor:
    """The last tokens of a sequence over all of it, or over a window of their own. q: [new, Hq, D];
    k, v: [Hkv, context, D]."""
    new, context = q.shape[0], k.shape[1]
    mask = None
    if new < context or 0 < window < context:
        mask = torch.ones(new, context, dtype=torch.bool, device=q.device).tril_(context - new)
    if mask is not None and window:
        mask.triu_(context - new - window + 1)
    return F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k[None],
        v[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=True,
    )[0].transpose(0, 1)
