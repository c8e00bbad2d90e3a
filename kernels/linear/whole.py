"""Products of up to 16 rows by programs that hold all K of their weights before they wait.

Invariant: the sum is that of skinny.py with one share, bit for bit: in order over K by the matrix
units, in fp32. A norm before the product is computed by every program for itself, in one order
(norms.py), and x is rounded behind it, as where it is stored between two kernels.

Weights do not depend on the kernel ahead: with dependent launch they are in shared memory when it
ends. What is left to do then is the way of a few rows from memory, their norm, and a chain of
K / 16 dependent products.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.linear.norms import added_pieces, normed, scale_rows, sum_of_squares
from quire.kernels.linear.skinny import _epilogue, _weight_rows
from quire.kernels.linear.tuning import SIDE_ROWS


@triton.jit(do_not_specialize=["M"])
def _whole_kernel(
    x_ptr,  # [M, K]
    w_ptr,  # [COLUMNS, K]; with SILU [2 * COLUMNS, K]
    out_ptr,  # [M, COLUMNS]
    residual_ptr,  # [M, COLUMNS], read if RESIDUAL; may be out_ptr
    norm_ptr,  # [K], read if NORM
    M,
    COLUMNS,
    eps,
    K: tl.constexpr,
    PIECES: tl.constexpr,  # of BLOCK_K in K, rounded up to a power of two
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # weight rows a program (gate and up rows together)
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SILU: tl.constexpr,
    APART: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(weight rows / BLOCK_N),)."""
    tile = tl.program_id(0)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    rows = _weight_rows(w_ptr, tile, COLUMNS, K, BLOCK_N, SILU)
    if PDL and EARLY:
        gdc_launch_dependents()
    held = ()
    norm = ()
    for start in tl.static_range(0, K, BLOCK_K):
        held = held + (tl.load(rows[:, None] + (start + k)[None, :]),)  # noqa: RUF005 (Triton's)
    if NORM:  # as x lies, so that nothing has to move
        for start in tl.static_range(0, K, BLOCK_K):
            at = norm_ptr + (m * 0)[:, None] + (start + k)[None, :]
            norm = norm + (tl.load(at).to(tl.float32),)  # noqa: RUF005
    if PDL:
        if not EARLY:
            gdc_launch_dependents()
        gdc_wait()
    in_m = (m < M)[:, None]
    at_x = x_ptr + m.to(tl.int64)[:, None] * K
    x = ()
    squares = ()
    for start in tl.static_range(0, K, BLOCK_K):
        x = x + (tl.load(at_x + (start + k)[None, :], mask=in_m, other=0.0),)  # noqa: RUF005
    if NORM:
        for step in tl.static_range(K // BLOCK_K):
            squares = squares + (sum_of_squares(x[step]),)  # noqa: RUF005
        scale = scale_rows(added_pieces(squares, 0, PIECES, K // BLOCK_K), eps, K)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in tl.static_range(K // BLOCK_K):
        y = normed(x[step], scale, norm[step]) if NORM else x[step]
        acc = tl.dot(held[step], y.T, acc, input_precision="ieee")
    _epilogue(
        out_ptr, residual_ptr, acc.T, m, tile, M, COLUMNS, BLOCK_M, BLOCK_N, RESIDUAL, SILU, APART,
        x_ptr.dtype.element_ty,
    )  # fmt: skip


def whole(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    block_n: int,
    block_k: int,
    stages: int,
    warps: int,
    early: bool,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    silu: bool = False,
    pdl: bool = False,
    apart: bool = False,
) -> None:
    """out = x @ weight.T, with what `linear` may put around it. x: [M, K], M up to 16; out may be
    residual. apart: what a residual is added to is rounded to x's dtype first.

    Raises ValueError for more rows, or stages that are not all of K."""
    rows, width = x.shape
    if rows > SIDE_ROWS:
        raise ValueError(f"{rows} rows, of which this kernel takes {SIDE_ROWS}")
    if stages * block_k != width:
        raise ValueError(f"{stages} steps of {width}, {block_k} columns each")
    _whole_kernel[(triton.cdiv(weight.shape[0], block_n),)](
        x,
        weight,
        out,
        out if residual is None else residual,
        x if norm_weight is None else norm_weight,
        rows,
        out.shape[1],
        eps,
        K=width,
        PIECES=triton.next_power_of_2(stages),
        BLOCK_M=8 if rows <= SIDE_ROWS // 2 else SIDE_ROWS,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        NORM=norm_weight is not None,
        RESIDUAL=residual is not None,
        SILU=silu,
        APART=apart,
        EARLY=early,
        PDL=pdl,
        num_warps=warps,
        launch_pdl=pdl,
    )
