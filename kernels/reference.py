"""Every kernel again in plain PyTorch: the CPU path, and the oracle of the Triton kernels.

Invariant: a function here and its Triton twin take the same arguments, write the same buffers and
keep the same rules (ties go to the lowest id, softmax and norms in fp32, noise keyed by seed,
position and vocabulary id), so that either may stand in for the other.

Shapes used throughout:
    T tokens of R rows (a row is one request's part of a step), L rows that sample a token
    S slots (persistent places of requests on the device; the last one is the null slot)
    caches: [num_blocks, kv_heads, block_size, head_dim]; block 0 is the null block
    slot_mapping: [T] int64, block * block_size + offset, where a token's key and value are written
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_INF = float("inf")


# ---------------------------------------------------------------- norms, products, activations


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis, computed in fp32 and rounded once. x: [..., H], weight: [H]."""
    h = x.float()
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    return (h * weight.float()).to(x.dtype)


def silu_mul(x: Tensor) -> Tensor:
    """silu(gate) * up, with gate and up side by side. x: [T, 2 * I] -> [T, I].

    In bf16 silu(gate) is rounded before the product, as in transformers: on a CPU an fp32 copy of
    both costs more than the activation.
    """
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


_FEW_ROWS, _NARROW = 8, 512


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T. Few narrow fp32 rows are taken as columns, one alone as two: on the CPU that
    is 1.3 to 4 times faster than the library's own choice (a matrix-vector product, for one)."""
    rows, width = x.shape
    if x.dtype != torch.float32 or x.is_cuda or rows > _FEW_ROWS or width > _NARROW or rows == 0:
        return F.linear(x, weight)
    columns = (x if rows > 1 else torch.cat((x, x))).t()
    return torch.mm(weight, columns).t()[:rows].contiguous()


def linear(
    x: Tensor,
    weight: Tensor,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    silu: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The one matrix product of the model, with what stands before and after it.

    x: [T, K]; weight: [N, K] (with silu: [2 * I, K], gate rows then up rows) -> [T, N] or [T, I].
    norm_weight: [K], RMSNorm x first. residual: [T, N], added to the result. out_dtype: the
    result's dtype (float32 for logits), else x's.
    """
    if norm_weight is not None:
        x = rms_norm(x, norm_weight, eps)
    y = _product(x, weight)
    if silu:
        y = silu_mul(y)
    if residual is not None:
        y = residual + y
    return y if out_dtype is None else y.to(out_dtype)


# ---------------------------------------------------------------- rotary embedding and KV write

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
    _, kv_heads, block_size, dim = k_cache.shape
    tokens = qkv.shape[0]
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
    q_heads = heads.shape[1] - 2 * kv_heads
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)

    qk = heads[:, : q_heads + kv_heads].float()
    qk = qk * torch.rsqrt(qk.square().mean(-1, keepdim=True) + eps)
    first, second = qk.chunk(2, dim=-1)
    weight = torch.cat((q_norm.float().expand(q_heads, dim), k_norm.float().expand(kv_heads, dim)))
    w1, w2 = weight.chunk(2, dim=-1)
    first, second = first * w1, second * w2
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    rotated = rotated.to(qkv.dtype)

    block, offset = slot_mapping // block_size, slot_mapping % block_size
    head = torch.arange(kv_heads, device=qkv.device)
    where = ((block[:, None] * kv_heads + head) * block_size + offset[:, None]).view(-1)
    for cache, fresh in ((k_cache, rotated[:, q_heads:]), (v_cache, heads[:, -kv_heads:])):
        cache.view(-1, dim).index_copy_(0, where, fresh.to(cache.dtype).reshape(-1, dim))
    return rotated[:, :q_heads]


# ---------------------------------------------------------------- attention


def _row_blocks(block_tables: Tensor, kv_heads: int, columns: int) -> Tensor:
    """Where each head's part of each block lies, in a cache seen as [blocks * Hkv, ...].

    block_tables: [R, >= columns] -> [R, Hkv, columns] int64.
    """
    heads = torch.arange(kv_heads, device=block_tables.device)
    return block_tables[:, None, :columns].long() * kv_heads + heads[None, :, None]


def _gathered(cache: Tensor, parts: Tensor, context: int) -> Tensor:
    """A row's keys or values in token order, fp32: [Hkv, context, D]. parts: [Hkv * blocks]."""
    _, kv_heads, block_size, dim = cache.shape
    flat = cache.view(-1, block_size * dim).index_select(0, parts)
    return flat.view(kv_heads, -1, dim)[:, :context].float()


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
) -> Tensor:
    """One query token a row against its whole context, grouped heads. Returns [R, Hq, D].

    q: [R, Hq, D]; block_tables: [R, >= blocks] int32; context_lens: [R], the new token included.
    max_context_len bounds context_lens (an int known to the host). A context of 0 gives zeros.
    """
    rows, q_heads, dim = q.shape
    _, kv_heads, block_size, _ = k_cache.shape
    out = torch.zeros(rows, kv_heads, q_heads // kv_heads, dim, device=q.device)
    scaled = q.reshape(out.shape).float() * scale
    parts = _row_blocks(block_tables, kv_heads, -(-max_context_len // block_size))
    # Row by row: no row pays for the longest, and its result does not depend on the others.
    for row, context in enumerate(context_lens.tolist()):
        if context:
            mine = parts[row, :, : -(-context // block_size)].reshape(-1)
            k, v = (_gathered(cache, mine, context) for cache in (k_cache, v_cache))
            _one_token(scaled[row], k, v, out[row])
    return out.view(rows, q_heads, dim).to(q.dtype)


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
) -> Tensor:
    """A step of one-token rows: qk_norm_rope_kv_write, then decode_attention. [R, Hq, D]."""
    q = qk_norm_rope_kv_write(
        qkv, q_norm, k_norm, eps, cos_sin, positions, slot_mapping, k_cache, v_cache
    )
    return decode_attention(q, k_cache, v_cache, block_tables, context_lens, scale, max_context_len)


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
) -> Tensor:
    """Causal attention of each row's new tokens over its cached prefix and themselves.

    q: [T, Hq, D], rows packed one after the other; query_start_loc: [R + 1]; context_lens: [R],
    cached and new tokens together. A row's last query token sees its whole context. [T, Hq, D].
    """
    del max_query_len  # sizes a kernel's grid; rows are walked here
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    _, q_heads, dim = q.shape
    _, kv_heads, block_size, _ = k_cache.shape
    parts = _row_blocks(block_tables, kv_heads, -(-max_context_len // block_size))
    starts = query_start_loc.tolist()
    for row, context in enumerate(context_lens.tolist()):
        begin, end = starts[row], starts[row + 1]
        if begin == end:
            continue
        mine = parts[row, :, : -(-context // block_size)].reshape(-1)
        k, v = (_gathered(cache, mine, context) for cache in (k_cache, v_cache))
        queries = q[begin:end].float()
        if end - begin == 1:  # exactly as in decode_attention
            grouped = queries.view(kv_heads, -1, dim) * scale
            out[begin] = _one_token(grouped, k, v).view(q_heads, dim)
        else:
            out[begin:end] = _causal(queries, k, v, scale)
    return out


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The last tokens of a sequence over all of it. q: [new, Hq, D]; k, v: [Hkv, context, D]."""
    new, context = q.shape[0], k.shape[1]
    mask = None
    if new < context:
        mask = torch.ones(new, context, dtype=torch.bool, device=q.device).tril_(context - new)
    return F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k[None],
        v[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=True,
    )[0].transpose(0, 1)


def copy_blocks(k_cache: Tensor, v_cache: Tensor, source: Tensor, target: Tensor) -> None:
    """Copy whole blocks. caches: [..., num_blocks, ...] of one layer; source, target: [C] int64."""
    k_cache[target] = k_cache[source]
    v_cache[target] = v_cache[source]


# ---------------------------------------------------------------- sampling
# logits: [L, V] fp32, changed in place by the functions that say so. slots: [L], the slot of each
# row; per-slot tensors are [S]. positions: [L], where in the sequence the sampled token will stand.


def apply_penalties(
    logits: Tensor,
    slots: Tensor,
    prompt_mask: Tensor,
    output_counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    """Repetition (Keskar et al., 2019), presence and frequency penalties, in place.

    prompt_mask: [S, V] bool, ids of the prompt; output_counts: [S, V] int32, ids sampled so far.
    """
    counts = output_counts[slots]
    in_output = counts > 0
    factor = repetition[slots, None]
    seen = in_output | prompt_mask[slots]
    damped = torch.where(logits > 0, logits / factor, logits * factor)
    logits.copy_(torch.where(seen, damped, logits))
    logits.sub_(counts * frequency[slots, None])
    logits.sub_(in_output * presence[slots, None])


def mask_stop_tokens(
    logits: Tensor, slots: Tensor, positions: Tensor, stop_ids: Tensor, min_position: Tensor
) -> None:
    """Forbid the ids that would end a row before its min_tokens, in place.

    stop_ids: [S, M] int32, -1 where unused; min_position: [S], first position they are allowed at.
    """
    ids = stop_ids[slots].long()
    early = (positions < min_position[slots])[:, None] & (ids >= 0)
    mask = torch.zeros_like(logits, dtype=torch.bool)
    mask.scatter_(1, ids.clamp(min=0), early.logical_and(ids >= 0))
    # Unused entries are clamped to id 0 and may overwrite it with False: set id 0 on its own.
    mask[:, 0] = (early & (ids == 0)).any(1)
    logits.masked_fill_(mask, -_INF)


def filter_logits(
    logits: Tensor, slots: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> None:
    """Top-k, then top-p on what is left, then min-p; removed ids become -inf, in place.

    Probabilities are those after temperature (0 counts as 1). Every id that ties with the last one
    kept is kept, and the best id always is. top_k: [S] int32, 0 = all; top_p: [S], 1 = all;
    min_p: [S], 0 = all.
    Source: Holtzman et al., 2020 (top-p); Nguyen et al., 2024 (min-p).
    """
    vocab = logits.shape[1]
    k, p, least = top_k[slots, None].long(), top_p[slots, None], min_p[slots, None]
    k = torch.where(k > 0, k, vocab).clamp(max=vocab)
    if not bool(((k < vocab) | (p < 1) | (least > 0)).any()):
        return
    scaled = logits * _inverse_temperature(temperature, slots)
    threshold = torch.empty_like(least)
    rest = torch.arange(len(logits), device=logits.device)
    for width in (*(w for w in _BEST if w < vocab), vocab):
        whole = len(rest) == len(logits)
        rows = scaled if whole else scaled[rest]
        threshold[rest], sure = _lowest_kept(rows, k[rest], p[rest], width)
        rest = rest[~sure]
        if not len(rest):
            break
    floor = scaled.amax(-1, keepdim=True) + torch.log(least)
    logits.masked_fill_(scaled < torch.maximum(threshold, floor), -_INF)


def _inverse_temperature(temperature: Tensor, slots: Tensor) -> Tensor:
    """1 / temperature of each row, [L, 1]; 1 where the temperature is 0."""
    t = temperature[slots, None]
    return 1.0 / torch.where(t > 0, t, 1.0)


_BEST = (128, 2048)  # how many of a row's best are sorted, before the whole row is


def _lowest_kept(scaled: Tensor, k: Tensor, p: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The lowest value that top-k and then top-p keep, judged by a row's best `width` values.

    scaled: [L, V]; k: [L, 1], V = all; p: [L, 1]. Returns thresholds [L, 1] and, for each row,
    whether the values beyond `width` could not have changed it: [L].
    """
    vocab = scaled.shape[1]
    best = scaled.topk(width, dim=-1).values
    limited = k < vocab
    kth = torch.where(limited, best.gather(1, (k - 1).clamp(max=width - 1)), -_INF)
    kept = best.masked_fill(best < kth, -_INF)
    nucleus = p < 1
    total = kept.logsumexp(-1, keepdim=True)
    if bool((nucleus & ~limited).any()):
        total = torch.where(limited, total, scaled.logsumexp(-1, keepdim=True))
    probs = (kept - total).exp_()
    upto = probs.cumsum(-1)
    outside = upto - probs >= p
    outside[:, 0] = False
    last = kept.masked_fill(outside, _INF).amin(-1, keepdim=True)
    if width == vocab:
        sure = torch.ones_like(limited)
    else:
        all_seen = (k <= width) & ((scaled >= kth).sum(-1, keepdim=True) <= width)
        sure = torch.where(limited, all_seen, ~nucleus | (upto[:, -1:] >= p))
    return torch.where(nucleus, last, kth), sure[:, 0]


def _mix(x: Tensor) -> Tensor:
    """A bijective 32-bit hash on int32, in place (constants found by Wellons, `lowbias32`)."""
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - (1 << 32)
    x ^= (x >> 16) & 0xFFFF
    return x


def _noise(ids: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """Exponential(1) noise for int32 vocabulary ids; seeds and positions broadcast against them."""
    low = (((seeds & 0xFFFFFFFF) + (1 << 31)) % (1 << 32) - (1 << 31)).int()
    high = (seeds >> 32).int()
    first = _mix(low ^ _mix(positions.int() + 0x1E3779B9))
    second = _mix(high ^ _mix(first + 0x05EBCA6B))
    x = _mix(_mix(ids ^ first) ^ second)
    # Uniform in (0, 1) with its digits near 0, where the winners are: an exact 0 would win always.
    u = (x.bitwise_and_(0x7FFFFFFF).float() + 0.5).mul_(2.0**-31)
    return u.clamp_(max=1 - 2.0**-24).neg_().log1p_().neg_()


def exponential_noise(seeds: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """Exponential(1) noise [L, V], a pure function of (seed, position, vocabulary id).

    seeds: [L] int64 (already told apart by sibling index); positions: [L].
    """
    ids = torch.arange(vocab, dtype=torch.int32, device=seeds.device)
    return _noise(ids[None], seeds[:, None], positions[:, None])


_NOISE_AT_ONCE = 1 << 18  # elements: what a core's cache holds


def sample(
    logits: Tensor, slots: Tensor, positions: Tensor, temperature: Tensor, seeds: Tensor
) -> Tensor:
    """Draw one id a row by the Gumbel-max rule; temperature 0 takes the best; -1 as in `greedy`.
    Returns [L] int64.

    Source: Gumbel-max (Gumbel, 1954): argmax(logits / temperature - log(exponential noise)).
    """
    tokens = greedy(logits)
    hot = ((temperature[slots] > 0) & (tokens >= 0)).nonzero()[:, 0]
    scale = _inverse_temperature(temperature, slots)
    for rows in hot.split(max(1, _NOISE_AT_ONCE // logits.shape[1])):
        noisy = logits[rows] * scale[rows]
        _subtract_log_noise(noisy, seeds[slots[rows]], positions[rows])
        tokens[rows] = noisy.argmax(-1)
    return tokens


def _subtract_log_noise(scaled: Tensor, seeds: Tensor, positions: Tensor) -> None:
    """scaled: [L, V], changed. Ids at -inf cannot win: after a filter, noise is for the rest."""
    alive = scaled > -_INF
    if 4 * int(alive.sum()) > scaled.numel():
        scaled.sub_(exponential_noise(seeds, positions, scaled.shape[1]).log_())
        return
    rows, ids = alive.nonzero(as_tuple=True)
    scaled[rows, ids] -= _noise(ids.int(), seeds[rows], positions[rows]).log_()


def greedy(logits: Tensor) -> Tensor:
    """The best id of each row, the lowest where several are best; -1 where a row holds NaN or +inf,
    or nothing but -inf. [L, V] -> [L] int64."""
    tokens = logits.argmax(-1)  # NaN counts as best
    best = logits.gather(1, tokens[:, None])[:, 0]
    return tokens.masked_fill_(~best.isfinite(), -1)


def logprobs(logits: Tensor, tokens: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-softmax of raw logits: the chosen token's and the best `count`.

    Returns chosen [L] fp32 (of id 0 where the token is -1), rank [L] int64 (1 = best),
    top ids [L, count], top values [L, count].
    """
    total = logits.logsumexp(-1, keepdim=True)
    chosen = logits.gather(1, tokens[:, None].long().clamp(min=0))
    rank = (logits > chosen).sum(-1) + 1
    values, ids = logits.topk(count, dim=-1)
    return (chosen - total)[:, 0], rank, ids, values - total


# ---------------------------------------------------------------- state on the device


def prepare_decode(
    row_slots: Tensor,
    last_token: Tensor,
    num_computed: Tensor,
    slot_tables: Tensor,
    block_size: int,
    token_ids: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
) -> None:
    """Fill a step's inputs for rows of one token each, from what the slots hold.

    row_slots: [R]; last_token, num_computed: [S] int32; slot_tables: [S, M] int32.
    Outputs, [R] each: token_ids, positions, slot_mapping (int64), context_lens; block_tables:
    [R, M].
    """
    slots = row_slots.long()
    tables = slot_tables[slots]
    computed = num_computed[slots]
    token_ids.copy_(last_token[slots])
    positions.copy_(computed)
    context_lens.copy_(computed + 1)
    block_tables.copy_(tables)
    blocks = tables.gather(1, (computed // block_size).long()[:, None])[:, 0]
    slot_mapping.copy_(blocks.long() * block_size + computed % block_size)


def prepare_mixed(
    row_slots: Tensor,
    query_start_loc: Tensor,
    num_computed: Tensor,
    last_token: Tensor,
    slot_tables: Tensor,
    block_size: int,
    token_ids: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
) -> None:
    """The same for rows of any length; token_ids: [T] comes filled, -1 where the slot's last
    sampled token stands in. query_start_loc: [R + 1]; num_computed: [S]. Outputs as above, per
    token [T] or per row [R].
    """
    slots = row_slots.long()
    lens = query_start_loc.diff()
    rows = torch.repeat_interleave(
        torch.arange(len(slots), device=slots.device), lens, output_size=len(token_ids)
    )
    within = torch.arange(len(token_ids), device=slots.device) - query_start_loc[rows]
    computed = num_computed[slots]
    tables = slot_tables[slots]
    where = computed[rows] + within
    token_ids.copy_(torch.where(token_ids < 0, last_token[slots][rows], token_ids))
    positions.copy_(where)
    context_lens.copy_(computed + lens)
    block_tables.copy_(tables)
    blocks = tables[rows, where // block_size].long()
    slot_mapping.copy_(blocks * block_size + where % block_size)


def advance(
    row_slots: Tensor,
    query_lens: Tensor | None,
    num_computed: Tensor,
    sampled_rows: Tensor | None,
    tokens: Tensor,
    last_token: Tensor,
    output_counts: Tensor | None,
) -> None:
    """After a step: move each slot on, and remember its sampled token for the next one.

    row_slots: [R]; query_lens: [R] (None: all 1); sampled_rows: [L] rows that sampled (None: all);
    tokens: [L], -1 for none (kept as 0); output_counts: [S, V] int32, counted up unless None. The
    null slot (the last one) stays where it is: its rows are padding.
    """
    slots = row_slots.long()
    null = num_computed.shape[0] - 1
    step = torch.ones_like(row_slots) if query_lens is None else query_lens
    num_computed[slots] = (num_computed[slots] + step.int()) * (slots != null)
    sampled = slots if sampled_rows is None else slots[sampled_rows.long()]
    tokens = tokens.clamp(min=0)
    last_token[sampled] = tokens.to(last_token.dtype)
    if output_counts is not None:
        one = torch.ones_like(sampled, dtype=output_counts.dtype)
        output_counts.index_put_((sampled, tokens.long()), one, accumulate=True)
