"""Attention of one new token a row over pages, in Triton.

Set TRITON_INTERPRET=1 before this is imported, unless there is a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _decode(
    q, keys, values, tables, contexts, out, scale, width,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A program a row and query head: block after block of its table, as in chapter 4."""
    row, head = tl.program_id(0), tl.program_id(1)
    kv = head // (HQ // HKV)
    dims, near = tl.arange(0, D), tl.arange(0, SIZE)
    query = tl.load(q + (row * HQ + head) * D + dims)
    context = tl.load(contexts + row)
    best, total = tl.full((), -float("inf"), tl.float32), tl.full((), 0.0, tl.float32)
    found = tl.zeros((D,), tl.float32)
    for column in range(tl.cdiv(context, SIZE)):
        block = tl.load(tables + row * width + column)  # the one line that pages add
        there = column * SIZE + near < context
        where = ((block * SIZE + near)[:, None] * HKV + kv) * D + dims
        k = tl.load(keys + where, mask=there[:, None], other=0.0)
        scores = tl.where(there, tl.sum(k * query, 1) * scale, -float("inf"))
        better = tl.maximum(best, tl.max(scores, 0))
        shrink, weights = tl.exp(best - better), tl.exp(scores - better)
        v = tl.load(values + where, mask=there[:, None], other=0.0)
        found = found * shrink + tl.sum(weights[:, None] * v, 0)
        total = total * shrink + tl.sum(weights, 0)
        best = better
    tl.store(out + (row * HQ + head) * D + dims, found / total)


def decode(
    q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, contexts: Tensor, size: int
) -> Tensor:
    """q: [R, Hq, D]; keys, values: [slots, Hkv, D]; tables: [R, W]; contexts: [R]."""
    out = torch.empty_like(q)
    rows, heads, dim = q.shape
    grid = (rows, heads)
    _decode[grid](
        q, keys, values, tables, contexts, out, dim**-0.5, tables.shape[1],
        heads, keys.shape[1], dim, size,
    )  # fmt: skip
    return out
