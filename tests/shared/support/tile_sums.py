"""Tiles of scores and values as attention sums them in exact mode, from a maximum on."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.attention.decode_merge import add_tile, empty_sum


@triton.jit
def _kernel(
    s_ptr, v_ptr, out_ptr, least, TILES: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, D)[None, :]
    m, total, acc = empty_sum(ROWS, D)
    m = tl.maximum(m, least)
    for i in tl.static_range(TILES):
        at = i * TILE + tl.arange(0, TILE)
        s = tl.load(s_ptr + rows * (TILES * TILE) + at[None, :])
        v = tl.load(v_ptr + at[:, None] * D + columns)
        m, total, acc = add_tile(m, total, acc, s, v, 1.0, "tf32")
    tl.store(out_ptr + rows * D + columns, acc / total[:, None])


def tile_sums(s: Tensor, v: Tensor, least: float, tile: int) -> Tensor:
    """s: [rows, tokens] fp32; v: [tokens, D]. Returns [rows, D] fp32. least: where maxima begin."""
    (rows, tokens), dim = s.shape, v.shape[1]
    out = torch.empty(rows, dim, dtype=torch.float32, device=s.device)
    _kernel[(1,)](s, v, out, least, TILES=tokens // tile, ROWS=rows, TILE=tile, D=dim)
    return out
