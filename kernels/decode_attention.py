"""Paged decode attention in Triton: one query token a row against the row's whole context.

    q            [R, Hq, D]                      k_cache, v_cache [blocks, Hkv, block_size, D]
    block_tables [R, M] int32                    context_lens     [R]
    partial      [R, Hq, S, D'] fp32             stats            [R, Hq, S, 2] fp32 (maximum, sum)

A context is cut at fixed token boundaries; one program takes one split of one row for one kv head,
with the group's query heads packed in one tile (padded to 16 rows for the matrix units). A second
kernel merges a row's splits. Tokens past the context are masked, so the cache may hold anything.

Invariant: a row's result is a function of the row alone, bit for bit, whatever its batch mates and
whichever split is launched. Every split sums along one tree:

    tile   TILE tokens, with a maximum of their own
    unit   UNIT tokens, its tiles merged in index order; a multiple of UNIT for contexts beyond
           UNIT * MAX_SPLITS, a function of the context alone, so that the workspace stays bounded
    super  SUPER units, merged in index order; a context is its supers, merged in index order

A split is a tile (level 0), a unit (1) or a super (2). Short ones fill the device for few rows; a
super leaves most contexts in one piece, so that nothing is written twice and nothing merged. The
levels agree because a merge with the empty sum is exact (of finite values), wherever it happens.

The split is the slowest index of the grid: the short last splits start last and fill the gaps.

Sources: Flash-Decoding (Dao et al., 2023); paged KV (Kwon et al., 2023); online softmax (Milakov
and Gimelshein, 2018).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .support import check_supported

UNIT = 256  # tokens: the shortest split of level 1
SUPER = 8  # units
MAX_SPLITS = 32  # partial results of a row at most
_TILE_BYTES = 16_384  # of keys a step of the loop; small tiles and many programs win
_TILE_PROGRAMS = 128  # rows * kv heads up to which a program takes a tile
_UNIT_PROGRAMS = 255  # and up to which it takes a unit; beyond, a super
_MERGED_AT_ONCE = 8  # partial results on their way to a program of the merge, at least
_MERGE_PROGRAMS = 512  # wanted of the merge, before one takes several heads
_LOG2E = 1.4426950408889634


@triton.jit
def _split_length(
    n,
    TILE: tl.constexpr, UNIT: tl.constexpr, SUPER: tl.constexpr, SPLITS: tl.constexpr,
    LEVEL: tl.constexpr,
):  # fmt: skip
    """Tokens of a unit and of a split, for a context of n. Tiles are splits within one super."""
    unit = UNIT * tl.maximum(tl.cdiv(n, UNIT * SPLITS), 1)
    split = unit
    if LEVEL == 0:
        split = tl.where((n <= TILE * SPLITS) & (n <= UNIT * SUPER), TILE, unit)
    if LEVEL == 2:
        split = unit * SUPER
    return unit, split


@triton.jit
def _empty_sum(HEADS: tl.constexpr, DP: tl.constexpr):
    """The softmax sum of no tokens: (maximum, sum of weights, weighted values)."""
    m = tl.full((HEADS,), -float("inf"), tl.float32)
    return m, tl.zeros((HEADS,), tl.float32), tl.zeros((HEADS, DP), tl.float32)


@triton.jit
def _merge(m, total, acc, m_new, total_new, acc_new):
    """Two softmax sums, the earlier tokens first. Exact where either of them is empty.

    A sum whose maximum is -inf counts as empty, whatever else it holds."""
    top = tl.maximum(m, m_new)
    finite = tl.where(top == -float("inf"), 0.0, top)  # two empty sums make an empty one, not NaN
    old = tl.exp2(m - finite)
    new = tl.exp2(m_new - finite)
    total = tl.fma(total, old, total_new * new)
    acc = tl.fma(acc, tl.broadcast_to(old[:, None], acc.shape), acc_new * new[:, None])
    return top, total, acc


@triton.jit
def _tile(
    q, k_ptr, v_ptr, table_ptr, h, t, end, scale,
    HKV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BS: tl.constexpr, TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of q [16, DP] over the tokens [t, min(t + TILE, end)): (maximum, sum, values)."""
    rn = tl.arange(0, TILE)
    rd = tl.arange(0, DP)
    seen = t + rn < end
    ok = seen[:, None]
    if DP != D:
        ok = ok & (rd < D)[None, :]
    if TILE <= BS:  # the tile lies inside one block: one read of the table
        block = tl.load(table_ptr + t // BS).to(tl.int64)
        base = ((block * HKV + h) * BS + t % BS) * D
        offsets = rn[:, None] * D + rd[None, :]
    else:
        tokens = t + rn
        blocks = tl.load(table_ptr + tokens // BS, mask=seen, other=0).to(tl.int64)
        base = 0
        offsets = (((blocks * HKV + h) * BS + tokens % BS) * D)[:, None] + rd[None, :]
    k = tl.load(k_ptr + base + offsets, mask=ok, other=0.0)
    v = tl.load(v_ptr + base + offsets, mask=ok, other=0.0)
    s = tl.dot(q, k.T, input_precision=PRECISION) * scale
    s = tl.where(seen[None, :], s, -float("inf"))
    m = tl.max(s, 1)
    p = tl.exp2(s - m[:, None])
    return m, tl.sum(p, 1), tl.dot(p.to(v.dtype), v, input_precision=PRECISION)


@triton.jit
def _sum_of(
    q, k_ptr, v_ptr, table_ptr, h, start, end, unit, scale,
    D: tl.constexpr, DP: tl.constexpr, HKV: tl.constexpr, BS: tl.constexpr, TILE: tl.constexpr,
    LEVEL: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The softmax sum of q [16, DP] over the tokens [start, end) of one split.

    One flat loop, so that the pipeline of loads never drains. Of several units it keeps two sums,
    the unit's and that of the units before; no branch says when one passes into the other.
    """
    m, total, acc = _empty_sum(16, DP)
    m_before, total_before, acc_before = _empty_sum(16, DP)
    for t in tl.range(start, end, TILE, num_stages=STAGES):
        if LEVEL == 2:
            begins = t % unit == 0
            m_done = tl.where(begins, m, -float("inf"))
            m_before, total_before, acc_before = _merge(
                m_before, total_before, acc_before, m_done, total, acc
            )
            m = tl.where(begins, -float("inf"), m)
        m_t, total_t, acc_t = _tile(
            q, k_ptr, v_ptr, table_ptr, h, t, end, scale, HKV, D, DP, BS, TILE, PRECISION
        )
        m, total, acc = _merge(m, total, acc, m_t, total_t, acc_t)
    if LEVEL == 2:
        m, total, acc = _merge(m_before, total_before, acc_before, m, total, acc)
    return m, total, acc


@triton.jit(do_not_specialize=["q_stride", "table_stride", "S"])
def _decode_kernel(
    q_ptr, k_ptr, v_ptr, tables_ptr, contexts_ptr, out_ptr, partial_ptr, stats_ptr,
    scale, q_stride, table_stride, S,
    G: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BS: tl.constexpr,
    TILE: tl.constexpr, UNIT: tl.constexpr, SUPER: tl.constexpr, SPLITS: tl.constexpr,
    LEVEL: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """grid (HKV, R, S)"""
    h = tl.program_id(0)
    row = tl.program_id(1)
    sp = tl.program_id(2)
    if PDL:
        if LEVEL == 0:  # few programs: the merge may wait beside them
            gdc_launch_dependents()
        gdc_wait()
    n = tl.load(contexts_ptr + row).to(tl.int32)
    unit, split = _split_length(n, TILE, UNIT, SUPER, SPLITS, LEVEL)
    start = sp * split
    rg = tl.arange(0, 16)
    rd = tl.arange(0, DP)
    ok = (rg < G)[:, None] & (rd < D)[None, :]
    heads = h * G + rg
    out = out_ptr + (row * (HKV * G) + heads).to(tl.int64)[:, None] * D + rd[None, :]
    if start < n:
        q = tl.load(
            q_ptr + row.to(tl.int64) * q_stride + heads[:, None] * D + rd[None, :],
            mask=ok,
            other=0.0,
        )
        end = tl.minimum(start + split, n)
        table = tables_ptr + row.to(tl.int64) * table_stride
        m, total, acc = _sum_of(
            q, k_ptr, v_ptr, table, h, start, end, unit, scale,
            D, DP, HKV, BS, TILE, LEVEL, STAGES, PRECISION,
        )  # fmt: skip
        if n <= split:
            tl.store(out, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=ok)
        else:
            part = (row * (HKV * G) + heads).to(tl.int64) * S + sp
            tl.store(partial_ptr + part[:, None] * DP + rd[None, :], acc, mask=(rg < G)[:, None])
            tl.store(stats_ptr + part * 2, m, mask=rg < G)
            tl.store(stats_ptr + part * 2 + 1, total, mask=rg < G)
    elif sp == 0:  # an empty context
        tl.store(out, tl.zeros((16, DP), out_ptr.dtype.element_ty), mask=ok)
    if PDL and LEVEL > 0:
        gdc_launch_dependents()


@triton.jit
def _load_partial(partial_ptr, stats_ptr, part, ok, DP: tl.constexpr):
    """Partial results of several heads, [HP] each; where not ok, the empty sum."""
    m = tl.load(stats_ptr + part * 2, mask=ok, other=-float("inf"))
    total = tl.load(stats_ptr + part * 2 + 1, mask=ok, other=0.0)
    at = partial_ptr + part[:, None] * DP + tl.arange(0, DP)[None, :]
    return m, total, tl.load(at, mask=ok, other=0.0)


@triton.jit
def _merged(
    partial_ptr, stats_ptr, first, count,
    INNER: tl.constexpr, AT_ONCE: tl.constexpr, HP: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """The sum of `count` parts of each of HP heads: INNER at a time in order, then those in order.

    first: [HP], where a head's parts begin. AT_ONCE groups of INNER are unrolled, to overlap loads.
    """
    m, total, acc = _empty_sum(HP, DP)
    for group in range(0, count, INNER * AT_ONCE):
        for i in tl.static_range(AT_ONCE):
            m_i, total_i, acc_i = _empty_sum(HP, DP)
            for j in tl.static_range(INNER):
                part = group + i * INNER + j
                m_j, total_j, acc_j = _load_partial(
                    partial_ptr, stats_ptr, first + part, part < count, DP
                )
                m_i, total_i, acc_i = _merge(m_i, total_i, acc_i, m_j, total_j, acc_j)
            m, total, acc = _merge(m, total, acc, m_i, total_i, acc_i)
    return total, acc


@triton.jit(do_not_specialize=["S"])
def _merge_kernel(
    contexts_ptr, out_ptr, partial_ptr, stats_ptr, S,
    HQ: tl.constexpr, HP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, TILE: tl.constexpr,
    UNIT: tl.constexpr, SUPER: tl.constexpr, SPLITS: tl.constexpr, LEVEL: tl.constexpr,
    AT_ONCE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """grid (HQ / HP, R): merge the partial results of HP heads of one row; often there are none."""
    row = tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    n = tl.load(contexts_ptr + row).to(tl.int32)
    _, split = _split_length(n, TILE, UNIT, SUPER, SPLITS, LEVEL)
    if n > split:
        count = tl.cdiv(n, split)
        # Past the last head the last one again: it writes what is written there anyway.
        rh = tl.minimum(tl.program_id(0) * HP + tl.arange(0, HP), HQ - 1)
        heads = row.to(tl.int64) * HQ + rh
        first = heads * S
        if LEVEL == 2:
            total, acc = _merged(partial_ptr, stats_ptr, first, count, 1, AT_ONCE, HP, DP)
        elif LEVEL == 0 and split == TILE:
            # One super at most: its units are all there is to merge, whether it is one or not.
            INNER: tl.constexpr = UNIT // TILE
            ONCE: tl.constexpr = (AT_ONCE + INNER - 1) // INNER
            total, acc = _merged(partial_ptr, stats_ptr, first, count, INNER, ONCE, HP, DP)
        else:
            total, acc = _merged(partial_ptr, stats_ptr, first, count, SUPER, 1, HP, DP)
        rd = tl.arange(0, DP)
        y = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
        out = out_ptr + heads[:, None] * D + rd[None, :]
        tl.store(out, y, mask=(rd < D)[None, :])


def tile_tokens(head_dim: int, dtype: torch.dtype) -> int:
    """Tokens a tile: a function of the head and the dtype alone, as results depend on it."""
    padded = triton.next_power_of_2(head_dim)
    return max(16, min(64, _TILE_BYTES // (int(padded) * dtype.itemsize)))


def split_level(programs: int, max_context_len: int) -> int:
    """The split to launch, 0 to 2: for rows * kv heads, and a bound of their contexts."""
    if max_context_len <= UNIT:  # one split in any case: nothing to merge
        return 1
    if programs <= _TILE_PROGRAMS:
        return 0
    return 1 if programs <= _UNIT_PROGRAMS else 2


def num_splits(max_context_len: int, tile: int, level: int) -> int:
    """Partial results a row can have, for contexts up to max_context_len."""
    shortest = (tile, UNIT, UNIT * SUPER)[level]
    most = -(-MAX_SPLITS // SUPER) if level == 2 else MAX_SPLITS
    return max(1, min(most, -(-max_context_len // shortest)))


def merge_shape(rows: int, q_heads: int) -> tuple[int, int]:
    """Heads a program of the merge (a power of two), and its warps."""
    heads = 1
    while heads < min(8, q_heads) and rows * q_heads > heads * _MERGE_PROGRAMS:
        heads *= 2
    return heads, min(heads, 4)


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
    pdl: bool = False,
    level: int | None = None,
    tile: int | None = None,
    num_warps: int = 4,
    num_stages: int = 3,
) -> Tensor:
    """One query token a row against its whole context, grouped heads. Returns [R, Hq, D].

    The arguments are those of the twin in reference.py; scale > 0. max_context_len only bounds the
    grid and the workspace (R * Hq * S * D' fp32, S <= 32), so a captured graph passes the largest
    there will be. out: [R, Hq, D] contiguous, to be written instead of a new tensor. pdl: launch
    dependent on the kernel before (every kernel of the chain must wait for its predecessor).
    level (0 to 2: a split is a tile, a unit, a super), tile (a divisor of UNIT), num_warps,
    num_stages: for tuning. Tile and warps are part of the order of summation; level and stages are
    not, and results do not depend on them.
    Raises ValueError for a head size, dtype, block size, group or tile that is not supported.
    """
    rows, q_heads, dim = q.shape
    _, kv_heads, block_size, _ = k_cache.shape
    check_supported(dim, q.dtype, block_size, q_heads // kv_heads)
    if q.stride(2) != 1 or q.stride(1) != dim:
        q = q.contiguous()
    if out is None:
        out = torch.empty(rows, q_heads, dim, dtype=q.dtype, device=q.device)
    tile = tile or tile_tokens(dim, k_cache.dtype)
    if UNIT % tile:
        raise ValueError(f"tile {tile} does not divide a unit of {UNIT} tokens")
    if level is None:
        level = split_level(rows * kv_heads, max_context_len)
    splits = num_splits(max_context_len, tile, level)
    padded = triton.next_power_of_2(dim)
    partial = torch.empty(
        rows * q_heads * (splits if splits > 1 else 0) * (padded + 2),
        dtype=torch.float32,
        device=q.device,
    )
    stats = partial[rows * q_heads * splits * padded :] if splits > 1 else partial
    launch: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    shape = {
        "D": dim, "DP": padded, "TILE": tile, "UNIT": UNIT, "SUPER": SUPER, "SPLITS": MAX_SPLITS,
        "LEVEL": level, "PDL": pdl,
    }  # fmt: skip
    if rows:
        _decode_kernel[(kv_heads, rows, splits)](
            q, k_cache, v_cache, block_tables, context_lens, out, partial, stats,
            scale * _LOG2E, q.stride(0), block_tables.stride(0), splits,
            G=q_heads // kv_heads, HKV=kv_heads, BS=block_size, STAGES=num_stages,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            num_warps=num_warps, **shape, **launch,
        )  # fmt: skip
    if rows and splits > 1:
        heads, warps = merge_shape(rows, q_heads)
        _merge_kernel[(-(-q_heads // heads), rows)](
            context_lens, out, partial, stats, splits, HQ=q_heads, HP=heads,
            AT_ONCE=_MERGED_AT_ONCE, num_warps=warps, **shape, **launch,
        )  # fmt: skip
    return out
