"""The same in Triton, as a GPU would run it. Here the interpreter does, and nobody times that.

Set TRITON_INTERPRET=1 before this module is imported.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _naive(q, k, v, out, scale, T: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr):
    """ROWS queries against all T keys at once: near memory has to hold [ROWS, T] scores."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    keys, dims = tl.arange(0, T), tl.arange(0, D)
    mine = tl.load(q + rows[:, None] * D + dims)
    scores = tl.dot(mine, tl.load(k + keys[None, :] * D + dims[:, None])) * scale
    scores = tl.where(keys[None, :] <= rows[:, None], scores, -float("inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    found = tl.dot(weights, tl.load(v + keys[:, None] * D + dims))
    tl.store(out + rows[:, None] * D + dims, found / tl.sum(weights, 1)[:, None])


@triton.jit
def _flash(q, k, v, out, scale, D: tl.constexpr, TILE: tl.constexpr):
    """A tile of queries against tile after tile of keys: near memory holds [TILE, TILE] scores."""
    mine, dims, near = tl.program_id(0), tl.arange(0, D), tl.arange(0, TILE)
    rows = mine * TILE + near
    queries = tl.load(q + rows[:, None] * D + dims)
    best = tl.full((TILE,), -float("inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    found = tl.zeros((TILE, D), tl.float32)
    for tile in range(mine + 1):
        keys = tile * TILE + near
        scores = tl.dot(queries, tl.load(k + keys[None, :] * D + dims[:, None])) * scale
        scores = tl.where(keys[None, :] <= rows[:, None], scores, -float("inf"))
        better = tl.maximum(best, tl.max(scores, 1))
        shrink, weights = tl.exp(best - better), tl.exp(scores - better[:, None])
        total = total * shrink + tl.sum(weights, 1)
        values = tl.load(v + keys[:, None] * D + dims)
        found = found * shrink[:, None] + tl.dot(weights, values)
        best = better
    tl.store(out + rows[:, None] * D + dims, found / total[:, None])


def naive(q: Tensor, k: Tensor, v: Tensor, rows: int = 16) -> Tensor:
    """q, k, v: [T, D] float32; T and D powers of two, T a multiple of rows."""
    out = torch.empty_like(q)
    _naive[(len(q) // rows,)](q, k, v, out, q.shape[1] ** -0.5, len(q), q.shape[1], rows)
    return out


def flash(q: Tensor, k: Tensor, v: Tensor, tile: int = 16) -> Tensor:
    """q, k, v: [T, D] float32; D and tile powers of two, T a multiple of tile."""
    out = torch.empty_like(q)
    _flash[(len(q) // tile,)](q, k, v, out, q.shape[1] ** -0.5, q.shape[1], tile)
    return out
