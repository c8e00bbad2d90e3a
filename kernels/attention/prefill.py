"""Paged prefill attention in Triton: each row's new tokens over its cached prefix and themselves.

    q            [T, Hq, D], rows packed one after the other
    k_cache      [blocks, Hkv, block_size, D], and v_cache alike, of q's dtype or e4m3
    block_tables [R, M] int32    query_start_loc [R + 1]    context_lens [R] (cached and new tokens)

One program takes BLOCK_M query rows of one kv head: consecutive tokens of one request, each with
all the query heads of the group (tile row i is token i // G, head i % G), so that a group reads
its keys once. There are two loops: key tiles that every query of the tile sees in full, without
masks; then those that are cut by the diagonal or the end of the context.

Tiles are assigned on the device: tile i belongs to the last row whose first tile, bounded by
query_start_loc // tokens per tile + row, is not after i. So the grid depends on T and R alone, and
the host reads nothing. The last tiles of a row see the most keys and start first.

Rows of few tokens (decode rows in a mixed step) go to a second launch with tiles of 16 rows, since
a padded tile would waste most of its work.

Few tiles over long contexts (a prompt whose prefix is cached) would leave most of the device idle:
then the context is split over programs too. Each writes the result of its split

    partial [T, Hq, S, D'] fp32        stats [T, Hq, S, 2] fp32 (maximum, sum of weights)

and a second kernel merges a query's splits in index order. Splits end at multiples of SPLIT tokens,
or of the least multiple of it that divides the row's context into MAX_SPLITS. A query that sees
only one split is finished by its first program, and the programs of splits that no query sees exit
at once, so that a captured graph may use a loose bound of the contexts.

Invariant: a query's result depends on its own context, on the height of its tile, and on whether
the step is split, which follows from the numbers of tokens, rows and heads; never on the contents
of other rows, nor on max_context_len. Key tiles start at fixed multiples (a function of head size
and dtype) and are summed in order, but short rows use lower tiles and a split step sums split by
split: a chunk of a few tokens may differ from the whole in the last bits. Contexts of one split
give the same bits either way.

On sm_90 hopper_prefill.py handles whole contexts, bit for bit (`prefill_launch.for_hopper`).

Sources: FlashAttention-2 (Dao, 2023); Flash-Decoding (Dao et al., 2023); paged KV (Kwon et al.,
2023).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.attention.decode_merge import least_multiple
from quire.kernels.attention.kv_tiles import boxes
from quire.kernels.attention.prefill_launch import (
    Tiles,
    choose_tiles,
    for_hopper,
    num_tiles,
    plan_launches,
)
from quire.kernels.attention.prefill_merge import MAX_SPLITS, merge_splits, num_splits, workspace
from quire.kernels.padding import new_rows
from quire.kernels.support import check_cache, check_supported, shared_bytes

_LOG2E = 1.4426950408889634
_LEAST = tl.constexpr(-1e30)  # below any score; what is left of it weighs nothing


@triton.jit
def find_row(starts_ptr, tile, rows, QT: tl.constexpr):
    """The row that owns a tile: the last with starts[row] // QT + row <= tile."""
    owner = 0
    index = tl.arange(0, 128)
    for r in range(0, rows, 128):
        start = tl.load(starts_ptr + r + index, mask=r + index < rows, other=0).to(tl.int32)
        first = tl.where(r + index < rows, start // QT + r + index, 2147483647)
        owner += tl.sum((first <= tile).to(tl.int32), 0)
    return owner - 1


@triton.jit
def _keys(
    cache_ptr, table_ptr, h, t, seen,
    HKV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Keys or values of the tokens [t, t + BN): [BN, DP]; where MASKED, 0 beyond `seen`."""
    rn = tl.arange(0, BN)
    rd = tl.arange(0, DP)
    if BN <= BS:
        block = tl.load(table_ptr + t // BS).to(tl.int64)
        pointers = cache_ptr + ((block * HKV + h) * BS + t % BS) * D
        pointers = pointers + (rn[:, None] * D + rd[None, :])
    else:
        if BN == 2 * BS and not MASKED:  # two uniform reads instead of a gather
            low = tl.load(table_ptr + t // BS).to(tl.int64)
            high = tl.load(table_ptr + t // BS + 1).to(tl.int64)
            blocks = tl.where(rn < BS, low, high)
        elif MASKED:
            blocks = tl.load(table_ptr + (t + rn) // BS, mask=rn < seen, other=0).to(tl.int64)
        else:
            blocks = tl.load(table_ptr + (t + rn) // BS).to(tl.int64)
        pointers = cache_ptr + (((blocks * HKV + h) * BS + rn % BS) * D)[:, None] + rd[None, :]
    if MASKED:
        ok = (rn < seen)[:, None]
        if DP != D:
            ok = ok & (rd < D)[None, :]
        return tl.load(pointers, mask=ok, other=0.0)
    if DP != D:
        return tl.load(pointers, mask=(rd < D)[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit
def _attend(
    q, m, total, acc, k_ptr, v_ptr, k_boxes, v_boxes, table_ptr, h, begin, end, last, scale,
    HKV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr,
    MASKED: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
    WINDOW: tl.constexpr,
):  # fmt: skip
    """Add the tokens [begin, end) to the running softmax. last: [BM], the last token seen. WINDOW:
    of so many, where MASKED; 0: of all."""
    rn = tl.arange(0, BN)
    for t in tl.range(begin, end, BN, num_stages=STAGES):
        if TMA:
            block = tl.load(table_ptr + t // BS)
            head = block * HKV + h
            k = tl.reshape(k_boxes.load([head, t % BS, 0]), [BN, D])
        else:
            k = _keys(k_ptr, table_ptr, h, t, end - t, HKV, D, DP, BS, BN, MASKED).to(q.dtype)
        s = tl.dot(q, k.T, input_precision=PRECISION)
        if MASKED:
            s = tl.where((t + rn)[None, :] <= last[:, None], s, -float("inf"))
            if WINDOW:
                s = tl.where((t + rn)[None, :] > last[:, None] - WINDOW, s, -float("inf"))
        top = tl.maximum(m, tl.max(s, 1) * scale)
        if WINDOW:  # a row that has seen nothing yet has no maximum
            top = tl.maximum(top, _LEAST)
        p = tl.exp2(s * scale - top[:, None])
        old = tl.exp2(m - top)
        total = total * old + tl.sum(p, 1)
        acc = acc * old[:, None]
        if TMA:
            v = tl.reshape(v_boxes.load([head, t % BS, 0]), [BN, D])
        else:
            v = _keys(v_ptr, table_ptr, h, t, end - t, HKV, D, DP, BS, BN, MASKED).to(q.dtype)
        if MASKED and WINDOW:  # before the window may stand anything
            v = tl.where((t + rn > tl.min(last, 0) - WINDOW)[:, None], v, 0.0)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        m = top
    return m, total, acc


@triton.jit(
    do_not_specialize=["q_stride", "table_stride", "rows", "S", "least", "most"],
    do_not_specialize_on_alignment=["tables_ptr", "starts_ptr", "contexts_ptr"],
)
def _prefill_kernel(
    q_ptr, k_ptr, v_ptr, k_boxes, v_boxes, tables_ptr, starts_ptr, contexts_ptr, out_ptr,
    partial_ptr, stats_ptr, scale, q_stride, table_stride, rows, S, least, most,
    G: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr,
    TMA: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
    WINDOW: tl.constexpr,
):  # fmt: skip
    """grid (HKV, tiles, S): rows of least to most new tokens; others belong to another launch.

    k_boxes, v_boxes: where TMA, descriptors of the caches (`kv_tiles.boxes`).
    SPLIT: tokens a split at least; 0 where a program takes the whole context (S is 1).
    """
    QT: tl.constexpr = BM // G  # tokens a tile
    h = tl.program_id(0)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    if PDL and SPLIT:  # few programs: the merge may wait beside them
        gdc_launch_dependents()
    row = find_row(starts_ptr, tile, rows, QT)
    start = tl.load(starts_ptr + row).to(tl.int32)
    new = tl.load(starts_ptr + row + 1).to(tl.int32) - start
    context = tl.load(contexts_ptr + row).to(tl.int32)
    if PDL:
        gdc_wait()
    token = (tile - (start // QT + row)) * QT
    prefix = context - new
    begin = 0
    end = prefix + tl.minimum(token + QT, new)
    active = (token < new) & (new >= least) & (new <= most)
    if SPLIT:
        sp = tl.program_id(2)
        split = least_multiple(context, SPLIT, SPLITS)
        begin = sp * split
        active = active & (begin < end)
        end = tl.minimum(end, begin + split)
    if active:
        rm = tl.arange(0, BM)
        rd = tl.arange(0, DP)
        mine = token + rm // G
        ok = ((rm < QT * G) & (mine < new))[:, None]
        if DP != D:
            ok = ok & (rd < D)[None, :]
        where = (start + mine).to(tl.int64)[:, None]
        inside = (h * G + rm % G)[:, None] * D + rd[None, :]
        q = tl.load(q_ptr + where * q_stride + inside, mask=ok, other=0.0)
        table = tables_ptr + row.to(tl.int64) * table_stride
        # Padded tile rows see what the last real one sees, so that no maximum stays at -inf.
        last = prefix + tl.minimum(mine, new - 1)
        whole = (prefix + token + 1) // BN * BN
        if SPLIT:
            whole = tl.minimum(tl.maximum(whole, begin), end)
        m = tl.full((BM,), -float("inf"), tl.float32)
        total = tl.zeros((BM,), tl.float32)
        acc = tl.zeros((BM, DP), tl.float32)
        if WINDOW:  # from the first query's first token on; up to the last one's some do not see it
            m = tl.full((BM,), _LEAST, tl.float32)
            begin = tl.maximum(prefix + token + 1 - WINDOW, 0) // BN * BN
            all_see = tl.cdiv(tl.maximum(end - WINDOW, 0), BN) * BN
            edge = tl.minimum(tl.maximum(all_see, begin), end)
            m, total, acc = _attend(
                q, m, total, acc, k_ptr, v_ptr, k_boxes, v_boxes, table, h, begin, edge, last,
                scale, HKV, D, DP, BS, BN, True, False, 1, PRECISION, WINDOW,
            )  # fmt: skip
            begin = edge
            whole = tl.maximum(whole, edge)
        m, total, acc = _attend(
            q, m, total, acc, k_ptr, v_ptr, k_boxes, v_boxes, table, h, begin, whole, last, scale,
            HKV, D, DP, BS, BN, False, TMA, STAGES, PRECISION, WINDOW,
        )  # fmt: skip
        m, total, acc = _attend(
            q, m, total, acc, k_ptr, v_ptr, k_boxes, v_boxes, table, h, whole, end, last, scale,
            HKV, D, DP, BS, BN, True, False, 1, PRECISION, WINDOW,
        )  # fmt: skip
        if SPLIT:
            # A query that does not see this split has no maximum: its NaN are not stored.
            seen = (rm < QT * G) & (mine < new) & (last >= begin)
            many = seen & (last >= split)
            first = (start + token).to(tl.int64) * (HKV * G) * S + sp
            part = (rm // G * (HKV * G) + h * G + rm % G) * S
            partial = partial_ptr + first * DP
            tl.store(partial + (part * DP)[:, None] + rd[None, :], acc, mask=many[:, None])
            stats = stats_ptr + first * 2
            tl.store(stats + part * 2, m, mask=many)
            tl.store(stats + part * 2 + 1, total, mask=many)
            ok = ok & (seen & (last < split))[:, None]
        out = out_ptr + where * (HKV * G * D) + inside
        tl.store(out, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=ok)
    if PDL and not SPLIT:
        gdc_launch_dependents()


def prepared(q: Tensor, k_cache: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Queries whose heads lie one behind another, and where the result goes: [T, Hq, D] each.
    Raises ValueError for a head size, dtype, block size or group that is not supported."""
    _, q_heads, dim = q.shape
    _, kv_heads, block_size, _ = k_cache.shape
    check_supported(dim, q.dtype, block_size, q_heads // kv_heads)
    check_cache(q.dtype, k_cache.dtype)
    if q.stride(2) != 1 or q.stride(1) != dim:
        q = q.contiguous()
    return q, new_rows(q, *q.shape) if out is None else out


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
    pdl: bool = False,
    tiles: Tiles | None = None,
    split: int | None = None,
) -> Tensor:
    """Causal attention of each row's new tokens over its whole context. Returns [T, Hq, D].

    The arguments are those of the twin in `reference`; scale > 0. Tokens past the last row's end
    (padding of T) are left unwritten. max_context_len only bounds the grid and the workspace of a
    split step (T * Hq * S * (D' + 2) fp32, S <= 16, for at most 128 tiles), so a captured graph
    passes the largest there will be. out: [T, Hq, D] contiguous, to be written instead of a new
    tensor. window: of each token, as the twin has it; no context is split then. pdl: launch
    dependent on the kernel before. tiles, split: the launch shape and the
    tokens a split (a multiple of the tile's keys; 0 for none), for tuning.
    Raises ValueError for a head size, dtype, block size or group that is not supported.
    """
    tokens, q_heads, dim = q.shape
    rows = context_lens.shape[0]
    _, kv_heads, block_size, _ = k_cache.shape
    group = q_heads // kv_heads
    q, out = prepared(q, k_cache, out)
    padded = triton.next_power_of_2(dim)
    tiles = tiles or choose_tiles(dim, q.dtype, shared_bytes(q.device))
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    split = 0 if window else split
    plan = plan_launches(
        tokens, rows, kv_heads, group, max_query_len, max_context_len, tiles, split
    )
    for launch in plan if tokens and rows else ():
        if for_hopper(launch, q, k_cache, window):
            from quire.kernels.attention import hopper_prefill  # Gluon: not in every Triton

            hopper_prefill.attend(
                q, k_cache, v_cache, block_tables, query_start_loc, context_lens, out, scale,
                launch=launch, pdl=pdl,
            )  # fmt: skip
            continue
        shape, split = launch.tiles, launch.split
        splits = num_splits(max_context_len, split) if split else 1
        partial, stats = workspace(q, splits if split else 0)
        whole = boxes(k_cache, v_cache, shape.keys) if shape.tma else None
        _prefill_kernel[(kv_heads, num_tiles(tokens, rows, group, shape), splits)](
            q, k_cache, v_cache, *(whole or (None, None)), block_tables, query_start_loc,
            context_lens, out, partial, stats,
            scale * _LOG2E, q.stride(0), block_tables.stride(0), rows, splits,
            launch.least, launch.most,
            G=group, HKV=kv_heads, D=dim, DP=padded, BS=block_size,
            BM=shape.queries, BN=shape.keys, SPLIT=split, SPLITS=MAX_SPLITS,
            TMA=whole is not None, STAGES=shape.num_stages,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32", PDL=pdl,
            WINDOW=window, num_warps=shape.num_warps, **options,
        )  # fmt: skip
        if split:
            merge_splits(query_start_loc, context_lens, out, partial, stats, splits, split, pdl=pdl)
    return out
