"""Paged decode attention in Triton: one query token per row against the row's whole context.

    q            [R, Hq, D]                      k_cache, v_cache [blocks, Hkv, block_size, D]
    block_tables [R, M] int32                    context_lens     [R]
    partial      [R, Hq, S, D'] fp32             stats            [R, Hq, S, 2] fp32 (maximum, sum)

A context is split at fixed token boundaries; one program takes one split of one row for one kv
head, with the group's query heads packed in one tile (padded for the matrix units: to 16 rows, or
to 8 columns, `pairs.py`). A second kernel merges a row's splits; for the longest splits, of which
few contexts have more than one, the last program to finish does.

Invariant: a row's result is a function of the row alone, bit for bit, whatever the other rows, the
split that is launched, the number of warps, and the program that finishes last. Every split sums
along one tree:

    tile   TILE tokens, with a maximum of their own
    unit   UNIT tokens, its tiles merged in index order; a multiple of UNIT for contexts beyond
           UNIT * MAX_SPLITS, a function of the context alone, so that the workspace stays bounded
    long   LONG units, merged in index order; a context is its long splits, merged in index order

A split is a tile (level 0; a unit where a context is long), a unit (1) or long (2). Short ones fill
the device when there are few rows; with long ones most contexts are one split, so that nothing is
written twice and nothing merged. The levels agree because a merge with the empty sum is exact (for
finite values), wherever it happens. Between launches every counter is zero: the last program to
arrive resets it.

Tokens past a context are never read, so the cache may hold anything there: a tile that would cross
the end of the context is shifted down to end with it. Tiles are loaded through descriptors (TMA)
where the device has them; where there are many programs, and power bounds the step, two warps are
then used instead of four.

Over a cache of e4m3 products are in fp16, those of values separately for even and odd columns; no
order of summation depends on that (`pairs.py`).

With `exact`, a row has the same bits as in `exact_prefill.py`, along the tree described there:
tiles are at multiples of TILE for every context, rows past its end are masked, which descriptors
cannot do, a short split is a unit, or several units that are tiles and are written one by one, and
a long one any context.

Launched as a programmatic dependent, a program reads the prepared inputs (contexts, positions,
slots, tables) before it waits for the preceding kernel and, where two programs fill a
multiprocessor, the first tiles too, unless one of them will hold the newest token. That is safe: no
program starts before a preceding ordinary launch has, which waits for everything before it, and
between the preparation of a step and its layers there is one, the embedding look-up. Everything but
a row's newest token is from earlier steps.

The split is the slowest index of the grid: the short last splits start last and fill the gaps.

`rope_decode_attention` takes the product's qkv instead of q: each program norms and rotates its own
query heads, and the one whose split holds a row's last token writes that token's key and value
before it reads them. No other program reads that token. It gives the same bits as the two kernels.

Sources: Flash-Decoding (Dao et al., 2023); paged KV (Kwon et al., 2023); online softmax (Milakov
and Gimelshein, 2018).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any, NamedTuple, Unpack

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents

from quire.kernels import fp8_groups
from quire.kernels.attention import decode_launch
from quire.kernels.attention.decode_launch import Heads, Launch
from quire.kernels.attention.decode_merge import (
    add_tile,
    empty_sum,
    merge_long_splits,
    merge_splits,
    split_length,
    store_heads,
    store_part,
    sum_of_weights,
)
from quire.kernels.attention.decode_queries import take_queries
from quire.kernels.attention.kv_tiles import boxes, fence, load_tile
from quire.kernels.attention.pairs import joined, merge_both, weighted
from quire.kernels.padding import new_rows
from quire.kernels.support import before_hopper, check_cache, check_supported, shared_bytes
from quire.kernels.weight import Quantized

_LOG2E = 1.4426950408889634


@triton.jit(
    do_not_specialize=["stride", "table_stride", "S", "most", "early"],
    do_not_specialize_on_alignment=["tables_ptr", "contexts_ptr", "positions_ptr", "slots_ptr"],
)
def _decode_kernel(
    q_ptr, k_ptr, v_ptr, k_boxes, v_boxes, tables_ptr, contexts_ptr, out_ptr, scales_ptr, stride,
    partial_ptr, stats_ptr, counters_ptr, q_norm_ptr, k_norm_ptr, cos_sin_ptr, positions_ptr,
    slots_ptr, eps, scale, q_stride, table_stride, S, most, early,
    G: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BS: tl.constexpr,
    TILE: tl.constexpr, UNIT: tl.constexpr, LONG: tl.constexpr, SPLITS: tl.constexpr,
    LEVEL: tl.constexpr, TMA: tl.constexpr, AHEAD: tl.constexpr, FENCE: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, ROPE: tl.constexpr, FIXED: tl.constexpr,
    PDL: tl.constexpr, WINDOW: tl.constexpr, PAIRS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """grid (HKV, R, S); q: [R, Hq, D], or with ROPE the qkv of the product: [R, Hq + 2 * HKV, D]

    k_boxes, v_boxes: where TMA, descriptors of the caches (`kv_tiles.boxes`). AHEAD: the first
    tiles are asked for before the wait. FENCE: of `kv_tiles.publish`. FIXED: tiles lie where they
    lie for every query (see above). WINDOW: tokens that are seen; 0: all, as with FIXED.
    """
    h = tl.program_id(0)
    row = tl.program_id(1)
    sp = tl.program_id(2)
    rg = tl.arange(0, HEADS)
    q_ptr += row.to(tl.int64) * q_stride
    # What the step was prepared with may be read before the kernel ahead has finished (see above).
    n = tl.load(contexts_ptr + row).to(tl.int32)
    table = tables_ptr + row.to(tl.int64) * table_stride
    block = tl.load(table)  # of the first split, whatever the context
    position = tl.load(positions_ptr + row).to(tl.int64) if ROPE else 0
    slot = tl.load(slots_ptr + row).to(tl.int64) if ROPE else 0
    unit, split = split_length(n, most, TILE, UNIT, LONG, SPLITS, LEVEL)
    start = sp * split
    begin = start
    if WINDOW:  # what lies before is not read; splits that lie there whole give the empty sum
        low = tl.maximum(n - WINDOW, 0)
        begin = tl.maximum(start, low // TILE * TILE)
        block = tl.load(table + begin // BS, mask=begin < n, other=0)
    elif sp > 0:
        block = tl.load(table + start // BS, mask=start < n, other=0)
    if PDL and n <= early:  # what follows may wait beside programs that are few or short
        gdc_launch_dependents()
    if (start < n) | (sp == 0):
        end = tl.minimum(start + split, n)
        newest = end == n
        # The newest token is no part of what is asked for ahead: the prologue's tiles and the next.
        if WINDOW:
            begin = tl.minimum(begin, end)
        wait = (end <= begin + STAGES * TILE) & newest
        if WINDOW:
            wait = wait | (begin == end)  # or nothing would, where nothing of the split is seen
        scales = scale
        if AHEAD:
            q = tl.zeros((HEADS, DP), tl.float16 if PAIRS else q_ptr.dtype.element_ty)
            if PAIRS:
                scales = tl.full((HEADS,), scale, tl.float32)
        if not AHEAD or wait:
            q, scales = take_queries(
                q_ptr, k_ptr, v_ptr, q_norm_ptr, k_norm_ptr, cos_sin_ptr, position, slot, h, eps,
                newest, scale, G, HKV, D, DP, BS, FENCE, ROPE, PDL, PAIRS, HEADS,
            )  # fmt: skip
        m, total, acc = empty_sum(HEADS, DP // 2 if PAIRS else DP)
        odd = acc  # with PAIRS the odd columns' part, or nothing of use
        m_before, total_before, acc_before, odd_before = m, total, acc, odd  # all but the last unit
        first = (row * HKV + h).to(tl.int64) * G
        APART: tl.constexpr = FIXED and LEVEL == 0  # each unit of a split is left for itself
        # Where a maximum leaves no trace, all units may have the same one.
        ALIKE: tl.constexpr = FIXED and q.dtype == tl.bfloat16
        edge = start + unit
        if WINDOW:
            edge += (begin - start) // unit * unit
        # One flat loop, so that the pipeline of loads never drains.
        for t in tl.range(begin, end, TILE, num_stages=STAGES):
            if AHEAD and (t == begin) & (not wait):
                q, scales = take_queries(
                    q_ptr, k_ptr, v_ptr, q_norm_ptr, k_norm_ptr, cos_sin_ptr, position, slot, h,
                    eps, newest, scale, G, HKV, D, DP, BS, FENCE, ROPE, PDL, PAIRS, HEADS,
                )  # fmt: skip
            if APART and t == edge:
                store_part(
                    partial_ptr, stats_ptr, (first + rg) * S + t // unit - 1, rg < G, m, total, acc
                )
                m, total, acc = empty_sum(HEADS, DP)
                edge += unit
            if LEVEL == 2:
                begins = t == edge
                if begins:
                    if ALIKE:
                        total_before, acc_before = total_before + total, acc_before + acc
                        total, acc = tl.zeros_like(total), tl.zeros_like(acc)
                    else:
                        m_before, total_before, acc_before, odd_before = merge_both(
                            m_before, total_before, acc_before, odd_before, m, total, acc, odd,
                            PAIRS,
                        )  # fmt: skip
                        m = tl.full(m.shape, -float("inf"), tl.float32)
                    edge += unit
            k, v, before = load_tile(
                k_ptr, v_ptr, k_boxes, v_boxes, table, block, h, t, end, q.dtype, HKV, D, DP, BS,
                TILE, TMA, FIXED, PAIRS,
            )  # fmt: skip
            if TILE <= BS:  # asked for a tile ahead, so that no copy waits for its address
                block = tl.load(table + (t + TILE) // BS, mask=t + TILE < end, other=0)
            if HEADS < 16:
                s = tl.trans(tl.dot(k, tl.trans(q), input_precision=PRECISION))
            else:
                s = tl.dot(q, k.T, input_precision=PRECISION)
            if FIXED:
                s = tl.where((t + tl.arange(0, TILE) < end)[None, :], s, -float("inf"))
            else:
                s = tl.where((tl.arange(0, TILE) >= before)[None, :], s, -float("inf"))
            if WINDOW:
                seen = t - before + tl.arange(0, TILE) >= low
                s = tl.where(seen[None, :], s, -float("inf"))
                v = tl.where(seen[:, None], v, 0)  # which may be another row's, or no number
            if FIXED:
                top = m
                m, total, acc = add_tile(m, total, acc, s, v, scales, PRECISION)
                if ALIKE and LEVEL == 2:
                    old = tl.exp2(top - m)
                    total_before, acc_before = total_before * old, acc_before * old[:, None]
            else:
                # a product by itself would fuse with what follows
                m_t = tl.fma(tl.max(s, 1), scales, 0.0)
                p = tl.exp2(tl.fma(s, scales[:, None] if PAIRS else scales, -m_t[:, None]))
                acc_t, odd_t = weighted(p, v, PAIRS, PRECISION)
                m, total, acc, odd = merge_both(
                    m, total, acc, odd, m_t, sum_of_weights(p), acc_t, odd_t, PAIRS
                )
        if LEVEL == 2:
            if ALIKE:
                total, acc = total_before + total, acc_before + acc
            else:
                m, total, acc, odd = merge_both(
                    m_before, total_before, acc_before, odd_before, m, total, acc, odd, PAIRS
                )
        acc = joined(acc, odd, PAIRS)
        index = first + rg
        if n <= (unit if APART else split):
            total = tl.where(n == 0, 1.0, total)  # an empty context gives zeros
            store_heads(out_ptr, scales_ptr, stride, index, rg < G, total, acc, HKV * G, D, DP)
        else:
            part = index * S + (tl.cdiv(end, unit) - 1 if APART else sp)
            store_part(partial_ptr, stats_ptr, part, rg < G, m, total, acc)
            if LEVEL == 2:
                tl.debug_barrier()
                counter = counters_ptr + row * HKV + h
                count = tl.cdiv(n, split)
                if tl.atomic_add(counter, 1, sem="acq_rel") == count - 1:
                    merge_long_splits(
                        partial_ptr, stats_ptr, out_ptr, scales_ptr, stride, first, count, S,
                        G, HKV * G, D, DP,
                    )  # fmt: skip
                    tl.store(counter, 0)
    if PDL:
        gdc_launch_dependents()


class _Rope(NamedTuple):
    """What the kernel needs to norm, rotate and write; in its order."""

    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    cos_sin: Tensor | None = None
    positions: Tensor | None = None
    slot_mapping: Tensor | None = None
    eps: float = 0.0


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
    **launch: Unpack[Launch],
) -> Tensor:
    """One query token a row against its whole context, grouped heads. Returns [R, Hq, D].

    The arguments are those of the twin in `reference`; scale > 0. max_context_len only bounds the
    grid and the workspace (R * Hq * S * D' fp32, S <= 32), so a captured graph passes the largest
    there will be. out: [R, Hq, D] contiguous, to be written instead of a new tensor.
    Raises ValueError for a head size, dtype, block size, group or tile that is not supported.
    """
    _, q_heads, dim = q.shape
    if q.stride(2) != 1 or q.stride(1) != dim:
        q = q.contiguous()
    caches = (k_cache, v_cache, block_tables, context_lens)
    whole = _attend(
        q, q_heads, caches, scale, max_context_len, _Rope(), out, window=window, **launch
    )
    assert isinstance(whole, Tensor)
    return whole


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
    **launch: Unpack[Launch],
) -> Tensor | Quantized:
    """qk_norm_rope_kv_write and decode_attention as one, for rows of one token. [R, Hq, D]; with
    narrow, of many rows maybe [R, Hq * D] as `fp8_quantize.quantize` has it, where a head is a
    group of it.

    The arguments are those of the twin in `reference`; slot_mapping is where the row's block table
    puts its last token. Otherwise as above.
    """
    _, kv_heads, _, dim = k_cache.shape
    q_heads = qkv.shape[1] // dim - 2 * kv_heads
    if qkv.stride(1) != 1:
        qkv = qkv.contiguous()
    caches = (k_cache, v_cache, block_tables, context_lens)
    rope = _Rope(q_norm, k_norm, cos_sin, positions, slot_mapping, eps)
    return _attend(qkv, q_heads, caches, scale, max_context_len, rope, out, narrow=narrow, **launch)


def _attend(
    source: Tensor,
    q_heads: int,
    caches: tuple[Tensor, Tensor, Tensor, Tensor],
    scale: float,
    max_context_len: int,
    rope: _Rope,
    out: Tensor | None,
    *,
    narrow: bool = False,
    counters: Tensor | None = None,
    pdl: bool = False,
    window: int = 0,
    **asked: Any,
) -> Tensor | Quantized:
    """source: [R, Hq, D], or [R, (Hq + 2 * Hkv) * D] with a rope. asked: of `Launch`."""
    k_cache, v_cache, block_tables, context_lens = caches
    rows, (_, kv_heads, block_size, dim) = len(source), k_cache.shape
    check_supported(dim, source.dtype, block_size, q_heads // kv_heads)
    check_cache(source.dtype, k_cache.dtype)
    device = source.device
    launch = decode_launch.choose(
        rows,
        Heads(q_heads, kv_heads, dim, source.dtype, block_size, k_cache.dtype.itemsize == 1),
        max_context_len,
        hopper=not before_hopper(device),
        shared=shared_bytes(device),
        **asked,
    )
    made = None
    grouped = launch.columns and dim == fp8_groups.GROUP and source.dtype == torch.bfloat16
    if narrow and grouped and out is None:
        made = fp8_groups.new(source, q_heads * dim, by_group=True)
        out = made.data.view(rows, q_heads, dim)
    elif out is None:
        out = new_rows(source, rows, q_heads, dim)
    scales = (None, 0) if made is None else (made.scale, made.scale.stride(1))
    pdl = pdl and (rows < decode_launch.ALONE or made is not None)
    if window and launch.fixed:
        raise ValueError(f"window {window}: attention within a window has no exact kernel")
    splits, padded = launch.splits, triton.next_power_of_2(dim)
    partial, stats = _workspace(rows * q_heads, splits, padded, device)
    counted = rows * kv_heads if launch.level == 2 and splits > 1 else 0
    if counters is None or counters.numel() < counted:
        counters = torch.zeros(counted, dtype=torch.int32, device=device)
    values = v_cache.view(torch.int16) if launch.pairs else v_cache
    whole = boxes(k_cache, values, launch.tile) if launch.tma else None
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    shape = {
        "D": dim, "DP": padded, "TILE": launch.tile, "UNIT": decode_launch.UNIT,
        "LONG": launch.long, "SPLITS": decode_launch.MAX_SPLITS, "LEVEL": launch.level,
        "PDL": pdl,
    }  # fmt: skip
    if rows:
        _decode_kernel[(kv_heads, rows, splits)](
            source, k_cache, v_cache, *(whole or (None, None)), block_tables, context_lens, out,
            *scales, partial, stats, counters, *rope,
            scale * _LOG2E, source.stride(0), block_tables.stride(0), splits, launch.most,
            launch.early,
            G=q_heads // kv_heads, HKV=kv_heads, BS=block_size, STAGES=launch.stages,
            TMA=launch.tma, AHEAD=launch.ahead, FENCE=fence(device, launch.tma),
            PRECISION="ieee" if source.dtype == torch.float32 else "tf32",
            ROPE=rope.q_norm is not None, FIXED=launch.fixed, WINDOW=window,
            PAIRS=launch.pairs, HEADS=8 if launch.columns else 16,
            num_warps=launch.warps, maxnreg=launch.registers, **shape, **options,
        )  # fmt: skip
    if rows and launch.merges:
        merge_splits(context_lens, out, partial, stats, splits, launch.most, **shape, **options)
    return out if made is None else made


def _workspace(heads: int, splits: int, padded: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """partial and stats of so many heads of rows, flat, in one allocation; of one split nothing."""
    cells = heads * splits if splits > 1 else 0
    space = torch.empty(cells * (padded + 2), dtype=torch.float32, device=device)
    return space, space[cells * padded :]
