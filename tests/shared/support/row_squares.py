"""Sums of a row's squares as kernels add them for a norm, before anything is rounded to 16 bits."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.linear.norms import added_pieces, squares_of_row, sum_of_squares

PIECE = 256


@triton.jit
def _kernel(
    x_ptr, out_ptr, K: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, PIECES: tl.constexpr
):
    """x: [ROWS, K]; out: [2, ROWS] fp32."""
    rows = tl.arange(0, ROWS)[:, None]
    at = x_ptr + rows * K
    k = tl.arange(0, SIZE)
    sums = ()
    for start in tl.static_range(0, K, SIZE):
        sums = sums + (sum_of_squares(tl.load(at + (start + k)[None, :])),)  # noqa: RUF005
    tl.store(out_ptr + rows, added_pieces(sums, 0, PIECES, K // SIZE))
    whole = (tl.arange(0, PIECES) * SIZE)[:, None] + k[None, :]
    for row in tl.static_range(ROWS):
        x = tl.load(x_ptr + row * K + whole, mask=whole < K, other=0.0)
        tl.store(out_ptr + ROWS + row, squares_of_row(x))


def row_squares(x: Tensor) -> Tensor:
    """Of x [rows, K] (powers of two, and pieces), by each way that there is: [2, rows]."""
    rows, width = x.shape
    out = torch.empty(2, rows, dtype=torch.float32, device=x.device)
    pieces = triton.next_power_of_2(width // PIECE)
    _kernel[(1,)](x, out, K=width, ROWS=rows, SIZE=PIECE, PIECES=pieces)
    return out
