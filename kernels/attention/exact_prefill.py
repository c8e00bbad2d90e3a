"""Prefill attention along decode's tree: a token's result has the bits that decode gives it.

The arguments are those of prefill.py, and so are tiles of queries, rows and launches. What differs
is the order of summation. A query at position p has the context n = p + 1, and its keys are summed
as `decode.py` sums a context of n with `exact`:

    tile   tokens [i * TILE, (i + 1) * TILE)
    unit   a tile in contexts of up to TILE * MAX_SPLITS / 2; in longer ones UNIT tokens, or the
           multiple that decode takes for a context of n: tiles in index order, each added by the
           matrix units to the sum before it, scaled to the maximum of both
    whole  its units, merged in index order

Invariant: a query's result is a function of the query and its context, bit for bit: not of the
prompt or chunk that it is part of, of the height of its tile, or of whether units are summed by one
program or by one each. The queries of a tile may differ in their units, if the multiple changes
between them: so units are counted by query.

Tiles that lie in the context come through descriptors (TMA) where it has them, those too that the
diagonal cuts: what a query does not see is masked, as long as it has been written. The tile that
the context's end cuts comes by addresses.

Few tiles over long contexts are split, a program for each unit of each tile, and a second kernel
merges the units of a query in index order. Whole contexts in bfloat16 are taken by hopper_exact.py
on sm_90, bit for bit (`_for_hopper`).

    partial      [T, Hq, S, D'] fp32        stats [T, Hq, S, 2] fp32 (maximum, sum of weights)

Sources: those of prefill.py and decode.py.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.attention import prefill_launch
from quire.kernels.attention.decode_launch import MAX_SPLITS, UNIT, Heads, tile_tokens
from quire.kernels.attention.decode_merge import (
    AT_ONCE,
    add_tile,
    columns,
    empty_sum,
    exact_unit,
    merge,
    merged,
    store_heads,
)
from quire.kernels.attention.kv_tiles import boxes, load_tile
from quire.kernels.attention.prefill import find_row, prepared
from quire.kernels.attention.prefill_launch import PrefillLaunch, Tiles, num_tiles
from quire.kernels.attention.prefill_merge import row_of, workspace
from quire.kernels.support import HOPPER_SHARED, shared_bytes

_FEW_PROGRAMS = 64  # tiles * kv heads up to which each unit has a program of its own
_LOG2E = 1.4426950408889634


@triton.jit
def _attend(
    q, m, total, acc, m_before, total_before, acc_before, k_ptr, v_ptr, k_boxes, v_boxes,
    table_ptr, h, begin, end, whole, shortest, longest, low, high, scale,
    HKV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr,
    UNIT: tl.constexpr, SPLITS: tl.constexpr, UNITS: tl.constexpr, CUT: tl.constexpr,
    TMA: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the tokens [begin, end) to the running sums, of which each query sees [low, high).

    Those sums are of the unit at hand, and of all before it. UNITS: whether there are several.
    low, high: [BM]; where there are several, a query's context ends at high. whole: where the first
    tile begins that some query does not see all of. CUT: whether `end` may cut a tile.
    """
    rn = tl.arange(0, BN)
    for t in tl.range(begin, end, BN, num_stages=STAGES):
        if UNITS:
            edge = (t % shortest == 0) | (t % longest == 0)
            if edge & (t > 0):
                begins = t % exact_unit(high, BN, UNIT, SPLITS) == 0
                m_all, total_all, acc_all = merge(m_before, total_before, acc_before, m, total, acc)
                m_before = tl.where(begins, m_all, m_before)
                total_before = tl.where(begins, total_all, total_before)
                acc_before = tl.where(begins[:, None], acc_all, acc_before)
                m = tl.where(begins, -float("inf"), m)
        block = 0
        if BN <= BS:
            block = tl.load(table_ptr + t // BS)
        k, v, _before = load_tile(
            k_ptr, v_ptr, k_boxes, v_boxes, table_ptr, block, h, t, end if CUT else t + BN,
            q.dtype, HKV, D, DP, BS, BN, TMA, not TMA,
        )  # fmt: skip
        s = tl.dot(q, k.T, input_precision=PRECISION)
        masked = t >= whole
        if masked:
            at = (t + rn)[None, :]
            if not UNITS:
                s = tl.where(at >= low[:, None], s, -float("inf"))
            s = tl.where(at < high[:, None], s, -float("inf"))
        m, total, acc = add_tile(m, total, acc, s, v, scale, PRECISION)
    return m, total, acc, m_before, total_before, acc_before


@triton.jit(
    do_not_specialize=["q_stride", "table_stride", "rows", "S", "least", "most"],
    do_not_specialize_on_alignment=["tables_ptr", "starts_ptr", "contexts_ptr"],
)
def _exact_prefill_kernel(
    q_ptr, k_ptr, v_ptr, k_boxes, v_boxes, tables_ptr, starts_ptr, contexts_ptr, out_ptr,
    partial_ptr, stats_ptr, scale, q_stride, table_stride, rows, S, least, most,
    G: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, UNIT: tl.constexpr, SPLITS: tl.constexpr,
    SPLIT: tl.constexpr,
    TMA: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """grid (HKV, tiles, S): rows of least to most new tokens; others belong to another launch.

    k_boxes, v_boxes: where TMA, descriptors of the caches (`kv_tiles.boxes`).
    SPLIT: a program takes one unit of each query; else the whole context (S is 1).
    """
    QT: tl.constexpr = BM // G  # tokens a tile
    h = tl.program_id(0)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    sp = tl.program_id(2)
    if PDL and SPLIT:  # few programs: the merge may wait beside them
        gdc_launch_dependents()
    row = find_row(starts_ptr, tile, rows, QT)
    start = tl.load(starts_ptr + row).to(tl.int32)
    new = tl.load(starts_ptr + row + 1).to(tl.int32) - start
    context = tl.load(contexts_ptr + row).to(tl.int32)
    if PDL:
        gdc_wait()
    token = (tile - (start // QT + row)) * QT
    first = context - new + token  # the first query's position; the last one's:
    final = context - new + tl.minimum(token + QT, new) - 1
    active = (token < new) & (new >= least) & (new <= most)
    shortest = exact_unit(first + 1, BN, UNIT, SPLITS)
    longest = exact_unit(final + 1, BN, UNIT, SPLITS)
    begin = 0
    end = final + 1
    if SPLIT:
        begin = sp * shortest
        end = tl.minimum(end, sp * longest + longest)
        active = active & (begin < end)
    if active:
        rm = tl.arange(0, BM)
        rd, inside = columns(D, DP)
        mine = token + rm // G
        some = (rm < QT * G) & (mine < new)
        ok = some[:, None] & inside[None, :]
        where = (start + mine).to(tl.int64)[:, None]
        heads = (h * G + rm % G)[:, None] * D + rd[None, :]
        q = tl.load(q_ptr + where * q_stride + heads, mask=ok, other=0.0)
        table = tables_ptr + row.to(tl.int64) * table_stride
        # Padded tile rows see what the last real one sees, so that no maximum stays at -inf.
        seen = context - new + tl.minimum(mine, new - 1) + 1
        unit = exact_unit(seen, BN, UNIT, SPLITS)
        low = tl.zeros((BM,), tl.int32)
        high = seen
        whole = (first + 1) // BN * BN
        if SPLIT:
            low = sp * unit
            high = tl.minimum(seen, low + unit)
            whole = tl.minimum(tl.maximum(whole, begin), end // BN * BN)
            whole = tl.where(shortest == longest, whole, begin)
        # Through descriptors come tiles that lie in the context, whoever sees them.
        boxed = whole
        if TMA:
            boxed = tl.minimum(tl.cdiv(end, BN), context // BN) * BN
            boxed = tl.maximum(boxed, begin)
        m, total, acc = empty_sum(BM, DP)
        m_before, total_before, acc_before = empty_sum(BM, DP)
        m, total, acc, m_before, total_before, acc_before = _attend(
            q, m, total, acc, m_before, total_before, acc_before, k_ptr, v_ptr, k_boxes, v_boxes,
            table, h, begin, boxed, whole, shortest, longest, low, high, scale, HKV, D, DP, BS, BN,
            UNIT, SPLITS, not SPLIT, False, TMA, STAGES, PRECISION,
        )  # fmt: skip
        m, total, acc, m_before, total_before, acc_before = _attend(
            q, m, total, acc, m_before, total_before, acc_before, k_ptr, v_ptr, k_boxes, v_boxes,
            table, h, boxed, end, whole, shortest, longest, low, high, scale, HKV, D, DP, BS, BN,
            UNIT, SPLITS, not SPLIT, True, False, 1, PRECISION,
        )  # fmt: skip
        if SPLIT:
            mine_too = some & (seen > low)
            many = mine_too & (seen > unit)
            which = where * (HKV * G) + (h * G + rm % G)[:, None]
            part = which * S + sp
            tl.store(partial_ptr + part * DP + tl.arange(0, DP)[None, :], acc, mask=many[:, None])
            stats = stats_ptr + part * 2
            tl.store(stats, m[:, None], mask=many[:, None])
            tl.store(stats + 1, total[:, None], mask=many[:, None])
            ok = ok & (mine_too & (seen <= unit))[:, None]
        else:
            m, total, acc = merge(m_before, total_before, acc_before, m, total, acc)
        out = out_ptr + where * (HKV * G * D) + heads
        tl.store(out, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=ok)
    if PDL and not SPLIT:
        gdc_launch_dependents()


@triton.jit(
    do_not_specialize=["rows", "S"],
    do_not_specialize_on_alignment=["starts_ptr", "contexts_ptr"],
)
def _merge_kernel(
    starts_ptr, contexts_ptr, out_ptr, partial_ptr, stats_ptr, rows, S,
    D: tl.constexpr, DP: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr, SPLITS: tl.constexpr,
    AT_ONCE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """grid (HQ, T): merge the units of one head of one token that sees several."""
    head = tl.program_id(0)
    token = tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
    row = row_of(starts_ptr, token, rows)
    stop = tl.load(starts_ptr + row + 1).to(tl.int32)
    n = tl.load(contexts_ptr + row).to(tl.int32) - (stop - token) + 1
    if PDL:
        gdc_wait()
    count = tl.cdiv(n, exact_unit(n, TILE, UNIT, SPLITS))
    if (token < stop) & (count > 1):
        heads = token.to(tl.int64) * tl.num_programs(0) + head + tl.zeros((1,), tl.int64)
        total, acc = merged(partial_ptr, stats_ptr, heads * S, count, 1, AT_ONCE, 1, DP)
        store_heads(out_ptr, None, 0, heads, heads >= 0, total, acc, 1, D, DP)


def choose_tiles(head_dim: int, dtype: torch.dtype, shared: int = HOPPER_SHARED) -> Tiles:
    """As prefill's, but with the tile of keys that decode takes, and two on their way where they
    come by descriptors."""
    tiles = prefill_launch.choose_tiles(head_dim, dtype, shared)
    stages = 3 if tiles.tma else tiles.num_stages
    return replace(tiles, keys=tile_tokens(head_dim, dtype), num_stages=stages)


def _for_hopper(launch: PrefillLaunch, q: Tensor, k_cache: Tensor) -> bool:
    """Whether hopper_exact.py computes a launch: what hopper_prefill.py would in fast mode, in
    bfloat16."""
    tiles = replace(launch.tiles, num_stages=prefill_launch.TUNED.num_stages)
    fits = prefill_launch.for_hopper(replace(launch, tiles=tiles), q, k_cache, window=0)
    return fits and q.dtype == torch.bfloat16


def _plan(
    tokens: int,
    rows: int,
    kv_heads: int,
    group: int,
    longest: int,
    max_context_len: int,
    tiles: Tiles,
    split: bool | None,
) -> list[PrefillLaunch]:
    """The launches of a step. Whether units have programs of their own changes no result."""
    if split is None:
        split = kv_heads * num_tiles(tokens, rows, group, tiles) <= _FEW_PROGRAMS
    return prefill_launch.plan_launches(
        tokens, rows, kv_heads, group, longest, max_context_len, tiles, tiles.keys if split else 0
    )


def kernels(
    tokens: int, rows: int, heads: Heads, longest: int, max_context_len: int, shared: int
) -> set[tuple[object, ...]]:
    """Names of the kernels that a call launches, equal where the kernels are. shared: bytes a
    program may have (`support.shared_bytes`)."""
    tiles, group = choose_tiles(heads.dim, heads.dtype, shared), heads.q_heads // heads.kv_heads
    plan = _plan(tokens, rows, heads.kv_heads, group, longest, max_context_len, tiles, None)
    return prefill_launch.kernels_of(plan)


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
    split: bool | None = None,
) -> Tensor:
    """Causal attention of each row's new tokens over its whole context. Returns [T, Hq, D].
    Raises ValueError for a window.

    As `prefill.prefill_attention`, with decode's bits. The workspace of a split step is
    T * Hq * S * (D' + 2) fp32, S <= 32. tiles, split: the launch shape and whether units have
    programs of their own, for tuning; results depend on the tile's keys alone.
    """
    if window:
        raise ValueError(f"window {window}: attention within a window has no exact kernel")
    tokens, q_heads, dim = q.shape
    rows = context_lens.shape[0]
    _, kv_heads, block_size, _ = k_cache.shape
    group = q_heads // kv_heads
    q, out = prepared(q, k_cache, out)
    padded = triton.next_power_of_2(dim)
    tiles = tiles or choose_tiles(dim, q.dtype, shared_bytes(q.device))
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    plan = _plan(tokens, rows, kv_heads, group, max_query_len, max_context_len, tiles, split)
    where = (query_start_loc, context_lens, out)
    common = {"D": dim, "DP": padded, "UNIT": UNIT, "SPLITS": MAX_SPLITS, "PDL": pdl}
    for launch in plan if tokens and rows else ():
        if _for_hopper(launch, q, k_cache):
            from quire.kernels.attention import hopper_exact  # Gluon: not in every Triton

            hopper_exact.attend(
                q, k_cache, v_cache, block_tables, query_start_loc, context_lens, out, scale,
                launch=launch, pdl=pdl,
            )  # fmt: skip
            continue
        shape = launch.tiles
        splits = min(MAX_SPLITS, -(-max_context_len // shape.keys)) if launch.split else 1
        partial, stats = workspace(q, splits if launch.split else 0)
        whole = boxes(k_cache, v_cache, shape.keys) if shape.tma else None
        _exact_prefill_kernel[(kv_heads, num_tiles(tokens, rows, group, shape), splits)](
            q, k_cache, v_cache, *(whole or (None, None)), block_tables, *where, partial, stats,
            scale * _LOG2E, q.stride(0), block_tables.stride(0), rows, splits,
            launch.least, launch.most,
            G=group, HKV=kv_heads, BS=block_size, BM=shape.queries, BN=shape.keys,
            SPLIT=bool(launch.split),
            TMA=whole is not None, STAGES=shape.num_stages,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            num_warps=shape.num_warps, **common, **options,
        )  # fmt: skip
        if launch.split:
            _merge_kernel[(q_heads, tokens)](
                *where, partial, stats, rows, splits, TILE=shape.keys, AT_ONCE=AT_ONCE,
                num_warps=1 if padded <= 128 else 2, **common, **options,
            )  # fmt: skip
    return out
