"""Paged decode attention in Triton: one query token a row against the row's whole context.

    q            [R, Hq, D]                      k_cache, v_cache [blocks, Hkv, block_size, D]
    block_tables [R, M] int32                    context_lens     [R]
    partial      [R, Hq, S, D'] fp32             stats            [R, Hq, S, 2] fp32 (maximum, sum)

A context is cut at fixed token boundaries; one program takes one split of one row for one kv head,
with the group's query heads packed in one tile (padded to 16 rows for the matrix units). A second
kernel merges a row's splits. Tokens past the context are masked, so the cache may hold anything.

Invariant: a row's result is a function of the row alone, bit for bit, whatever its batch mates and
whichever of the two split lengths is launched. Both sum in one order: tiles of TILE tokens, each
with its own maximum, merged in index order into groups of GROUP tokens, groups merged in index
order. Short splits (a tile each) fill the device for few rows, long ones (a group each) waste
nothing on many. Contexts beyond GROUP * MAX_SPLITS take splits of several groups, a function of
the context alone, so that S and the workspace stay bounded.

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

GROUP = 512  # tokens of a long split
MAX_SPLITS = 32  # partial results of a row at most
_TILE_BYTES = 16_384  # of keys a step of the loop; small tiles and many programs win
_FINE_PROGRAMS = 128  # rows * kv heads up to which splits are a tile each
_LOG2E = 1.4426950408889634


@triton.jit
def _split_length(
    n, TILE: tl.constexpr, GROUP: tl.constexpr, SPLITS: tl.constexpr, FINE: tl.constexpr
):
    """Tokens a split, for a context of n."""
    split = GROUP * tl.maximum(tl.cdiv(n, GROUP * SPLITS), 1)
    if FINE:
        split = tl.where(n <= TILE * SPLITS, TILE, split)
    return split


@triton.jit
def _merge(m, total, acc, m_new, total_new, acc_new):
    """Two softmax sums (maximum, sum of weights, weighted values), the earlier tokens first."""
    top = tl.maximum(m, m_new)
    old = tl.exp2(m - top)
    new = tl.exp2(m_new - top)
    total = tl.fma(total, old, total_new * new)
    if len(acc.shape) == 2:
        acc = tl.fma(acc, tl.broadcast_to(old[:, None], acc.shape), acc_new * new[:, None])
    else:
        acc = tl.fma(acc, tl.zeros_like(acc) + old, acc_new * new)
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


@triton.jit(do_not_specialize=["q_stride", "table_stride", "S"])
def _decode_kernel(
    q_ptr, k_ptr, v_ptr, tables_ptr, contexts_ptr, out_ptr, partial_ptr, stats_ptr,
    scale, q_stride, table_stride, S,
    G: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BS: tl.constexpr,
    TILE: tl.constexpr, GROUP: tl.constexpr, SPLITS: tl.constexpr, FINE: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """grid (HKV, R, S)"""
    h = tl.program_id(0)
    row = tl.program_id(1)
    sp = tl.program_id(2)
    if PDL:
        if FINE:  # few programs: the merge may wait beside them
            gdc_launch_dependents()
        gdc_wait()
    n = tl.load(contexts_ptr + row).to(tl.int32)
    split = _split_length(n, TILE, GROUP, SPLITS, FINE)
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
        m = tl.full((16,), -float("inf"), tl.float32)
        total = tl.zeros((16,), tl.float32)
        acc = tl.zeros((16, DP), tl.float32)
        for t in tl.range(start, end, TILE, num_stages=STAGES):
            m_t, total_t, acc_t = _tile(
                q, k_ptr, v_ptr, table, h, t, end, scale, HKV, D, DP, BS, TILE, PRECISION
            )
            m, total, acc = _merge(m, total, acc, m_t, total_t, acc_t)
        if n <= split:
            tl.store(out, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=ok)
        else:
            part = (row * (HKV * G) + heads).to(tl.int64) * S + sp
            tl.store(partial_ptr + part[:, None] * DP + rd[None, :], acc, mask=(rg < G)[:, None])
            tl.store(stats_ptr + part * 2, m, mask=rg < G)
            tl.store(stats_ptr + part * 2 + 1, total, mask=rg < G)
    elif sp == 0:  # an empty context
        tl.store(out, tl.zeros((16, DP), out_ptr.dtype.element_ty), mask=ok)
    if PDL and not FINE:
        gdc_launch_dependents()


@triton.jit
def _load_partial(partial_ptr, stats_ptr, part, ok, DP: tl.constexpr):
    """One partial result; where not ok, the empty sum, which changes nothing when merged."""
    m = tl.load(stats_ptr + part * 2, mask=ok, other=-float("inf"))
    total = tl.load(stats_ptr + part * 2 + 1, mask=ok, other=0.0)
    acc = tl.load(partial_ptr + part * DP + tl.arange(0, DP), mask=ok, other=0.0)
    return m, total, acc


@triton.jit(do_not_specialize=["S"])
def _merge_kernel(
    contexts_ptr, out_ptr, partial_ptr, stats_ptr, S,
    HQ: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr,
    SPLITS: tl.constexpr, FINE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """grid (R * HQ,): merge the partial results of one head of one row, in index order."""
    head = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    n = tl.load(contexts_ptr + head // HQ).to(tl.int32)
    split = _split_length(n, TILE, GROUP, SPLITS, FINE)
    count = tl.cdiv(n, split)
    if count > 1:
        first = head.to(tl.int64) * S
        m = -float("inf")
        total = 0.0
        acc = tl.zeros((DP,), tl.float32)
        if FINE and split == TILE:
            for g in range(0, count, GROUP // TILE):
                mg = -float("inf")
                lg = 0.0
                ag = tl.zeros((DP,), tl.float32)
                for j in tl.static_range(GROUP // TILE):
                    mj, lj, aj = _load_partial(
                        partial_ptr, stats_ptr, first + g + j, g + j < count, DP
                    )
                    mg, lg, ag = _merge(mg, lg, ag, mj, lj, aj)
                m, total, acc = _merge(m, total, acc, mg, lg, ag)
        else:
            for g in range(0, count, 4):
                for j in tl.static_range(4):
                    mj, lj, aj = _load_partial(
                        partial_ptr, stats_ptr, first + g + j, g + j < count, DP
                    )
                    m, total, acc = _merge(m, total, acc, mj, lj, aj)
        rd = tl.arange(0, DP)
        y = (acc / total).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + head.to(tl.int64) * D + rd, y, mask=rd < D)


def tile_tokens(head_dim: int, dtype: torch.dtype) -> int:
    """Tokens a tile: a function of the head and the dtype alone, as results depend on it."""
    padded = triton.next_power_of_2(head_dim)
    return max(16, min(64, _TILE_BYTES // (int(padded) * dtype.itemsize)))


def num_splits(max_context_len: int, tile: int, fine: bool) -> int:
    """Partial results a row can have, for contexts up to max_context_len."""
    return max(1, min(MAX_SPLITS, -(-max_context_len // (tile if fine else GROUP))))


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
    fine: bool | None = None,
    tile: int | None = None,
    num_warps: int = 4,
    num_stages: int = 3,
) -> Tensor:
    """One query token a row against its whole context, grouped heads. Returns [R, Hq, D].

    The arguments are those of the twin in reference.py; scale > 0. max_context_len only bounds the
    grid and the workspace (R * Hq * S * D' fp32, S <= 32), so a captured graph passes the largest
    there will be. out: [R, Hq, D] contiguous, to be written instead of a new tensor. pdl: launch
    dependent on the kernel before (every kernel of the chain must wait for its predecessor).
    fine, tile, num_warps, num_stages: for tuning. The tile is part of the order of summation;
    `fine` is not, and results do not depend on it.
    Raises ValueError for a head size, dtype, block size or group that is not supported.
    """
    rows, q_heads, dim = q.shape
    _, kv_heads, block_size, _ = k_cache.shape
    check_supported(dim, q.dtype, block_size, q_heads // kv_heads)
    if q.stride(2) != 1 or q.stride(1) != dim:
        q = q.contiguous()
    if out is None:
        out = torch.empty(rows, q_heads, dim, dtype=q.dtype, device=q.device)
    tile = tile or tile_tokens(dim, k_cache.dtype)
    if fine is None:
        fine = rows * kv_heads <= _FINE_PROGRAMS
    splits = num_splits(max_context_len, tile, fine)
    padded = triton.next_power_of_2(dim)
    partial = torch.empty(
        rows * q_heads * (splits if splits > 1 else 0) * (padded + 2),
        dtype=torch.float32,
        device=q.device,
    )
    stats = partial[rows * q_heads * splits * padded :] if splits > 1 else partial
    launch: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    shape = {
        "D": dim, "DP": padded, "TILE": tile, "GROUP": GROUP, "SPLITS": MAX_SPLITS,
        "FINE": fine, "PDL": pdl,
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
        _merge_kernel[(rows * q_heads,)](
            context_lens, out, partial, stats, splits, HQ=q_heads, num_warps=1, **shape, **launch
        )
    return out
