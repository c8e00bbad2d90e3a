"""What the splits of a prefill step's contexts give, merged: each query's, in index order.

    partial [T, Hq, S, D'] fp32        stats [T, Hq, S, 2] fp32 (maximum, sum of weights)

Invariant: a query at position p sees the splits 0 to p // split and they alone are read: those
beyond may hold anything. A query that sees one split was finished by whoever summed it.

Source: Flash-Decoding (Dao et al., 2023).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.attention.decode_merge import least_multiple

MAX_SPLITS = 16  # of a query; longer contexts have longer splits


@triton.jit
def row_of(starts_ptr, token, rows):
    """The row that owns a token: the last that starts at it or before."""
    owner = 0
    index = tl.arange(0, 128)
    for r in range(0, rows, 128):
        start = tl.load(starts_ptr + r + index, mask=r + index < rows, other=2147483647)
        owner += tl.sum((start <= token).to(tl.int32), 0)
    return owner - 1


@triton.jit(
    do_not_specialize=["rows", "S"],
    do_not_specialize_on_alignment=["starts_ptr", "contexts_ptr"],
)
def _merge_kernel(
    starts_ptr, contexts_ptr, out_ptr, partial_ptr, stats_ptr, rows, S,
    D: tl.constexpr, DP: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """grid (HQ, T): merge the partial results of one head of one token that sees several splits.

    All are in flight at once; those that are not there weigh nothing.
    """
    head = tl.program_id(0)
    token = tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
    row = row_of(starts_ptr, token, rows)
    stop = tl.load(starts_ptr + row + 1).to(tl.int32)
    context = tl.load(contexts_ptr + row).to(tl.int32)
    if PDL:
        gdc_wait()
    position = context - (stop - token)
    count = position // least_multiple(context, SPLIT, SPLITS) + 1
    if (token < stop) & (count > 1):
        which = token.to(tl.int64) * tl.num_programs(0) + head
        rs = tl.arange(0, SPLITS)
        rd = tl.arange(0, DP)
        part = which * S + rs
        there = rs < count
        m = tl.load(stats_ptr + part * 2, mask=there, other=-float("inf"))
        total = tl.load(stats_ptr + part * 2 + 1, mask=there, other=0.0)
        acc = tl.load(partial_ptr + part[:, None] * DP + rd, mask=there[:, None], other=0.0)
        weight = tl.exp2(m - tl.max(m, 0))
        y = tl.sum(acc * weight[:, None], 0) / tl.sum(total * weight, 0)
        tl.store(out_ptr + which * D + rd, y.to(out_ptr.dtype.element_ty), mask=rd < D)


def num_splits(max_context_len: int, split: int) -> int:
    """Partial results a query can have, for contexts up to max_context_len."""
    return min(MAX_SPLITS, -(-max_context_len // split))


def workspace(q: Tensor, splits: int) -> tuple[Tensor, Tensor]:
    """partial and stats for queries [T, Hq, D], flat, in one allocation."""
    tokens, q_heads, dim = q.shape
    padded = triton.next_power_of_2(dim)
    cells = tokens * q_heads * splits
    space = torch.empty(cells * (padded + 2), dtype=torch.float32, device=q.device)
    return space, space[cells * padded :]


def merge_splits(
    query_start_loc: Tensor,
    context_lens: Tensor,
    out: Tensor,
    partial: Tensor,
    stats: Tensor,
    splits: int,
    split: int,
    *,
    pdl: bool,
) -> None:
    """Write to out [T, Hq, D] the queries that see several splits of `split` tokens."""
    tokens, q_heads, dim = out.shape
    padded = triton.next_power_of_2(dim)
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    _merge_kernel[(q_heads, tokens)](
        query_start_loc, context_lens, out, partial, stats, context_lens.shape[0], splits,
        D=dim, DP=padded, SPLIT=split, SPLITS=MAX_SPLITS, PDL=pdl,
        num_warps=1 if padded <= 128 else 2, **options,
    )  # fmt: skip
