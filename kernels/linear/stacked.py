"""Products of up to 16 rows whose shares of K are stacked in the 64 rows of one matrix instruction.

Invariant: the sum is that of skinny.py with as many shares, bit for bit: within a share in order by
the matrix units, in fp32, and the shares are added in index order. A norm before a product of one
share is computed by every program for itself, in one order (norms.py).

A program multiplies 64 / SPLIT weight rows, each cut into its shares, by the shares of x: of what
comes of it, [weight rows, shares, rows of x, shares], only equal shares are taken. Few rows of x
leave room for that, and instructions of 64 rows follow one another in half the time of those of 16.
All weights come as boxes (TMA) before the kernel ahead has ended: sm_90 and newer.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from quire.kernels.linear.norms import PIECE, normed, scale_rows, squares_of_row, sum_of_squares
from quire.kernels.linear.side import _sum_in_order
from quire.kernels.linear.tuning import SIDE_ROWS, STACK

LEAST = 16  # columns of a matrix instruction


@triton.jit
def _stack(
    box, at_n, AT: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, SPLIT: tl.constexpr
):  # fmt: skip
    """Of ROWS weight rows, the shares of each one after another: [ROWS * SPLIT, SIZE]."""
    if SPLIT == 1:  # which the instruction reads where it lies
        rows = box.load([at_n, AT])
    else:
        rows = tl.reshape(box.load([at_n, 0, AT]), [ROWS * SPLIT, SIZE])
    return rows


@triton.jit
def _rows_of_x(
    x_ptr, norm, M, eps, K: tl.constexpr, AT: tl.constexpr, SIZE: tl.constexpr,
    COLUMNS: tl.constexpr, SPLIT: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Of each share [AT, AT + SIZE): [COLUMNS, SIZE], the shares of a row one after another."""
    r = tl.arange(0, COLUMNS)
    at = x_ptr + ((r // SPLIT).to(tl.int64) * K + r % SPLIT * (K // SPLIT) + AT)[:, None]
    x = tl.load(at + tl.arange(0, SIZE)[None, :], mask=(r // SPLIT < M)[:, None], other=0.0)
    if NORM:
        x = normed(x, scale_rows(sum_of_squares(x), eps, K), norm)
    return x


@triton.jit(do_not_specialize=["M"])
def _stacked_kernel(
    x_ptr,  # [M, K]
    first_box,  # a descriptor of [N, SPLIT, K / SPLIT], or [N, K]: the first FIRST of each share
    rest_box,  # and the REST behind it
    out_ptr,  # [M, N]
    residual_ptr,  # [M, N], read if RESIDUAL; may be out_ptr
    norm_ptr,  # [K], read if NORM
    M,
    N,
    eps,
    K: tl.constexpr,
    FIRST: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    NORM: tl.constexpr,
    ALONE: tl.constexpr,  # one row and one share
    RESIDUAL: tl.constexpr,
    APART: tl.constexpr,
    EARLY: tl.constexpr,  # what follows is launched before weights are loaded
    PDL: tl.constexpr,
):
    """grid (ceil(N / BLOCK_N),)."""
    COLUMNS: tl.constexpr = BLOCK_M * SPLIT
    at_n = tl.program_id(0) * BLOCK_N
    if PDL and EARLY:
        gdc_launch_dependents()
    norm = 0.0
    if NORM:
        at = tl.arange(0, K)
        if not ALONE:
            at = (tl.arange(0, BLOCK_M) * 0)[:, None] + at[None, :]
        norm = tl.load(norm_ptr + at).to(tl.float32)
    w = _stack(first_box, at_n, 0, BLOCK_N, FIRST, SPLIT)
    if REST:
        w_rest = _stack(rest_box, at_n, FIRST, BLOCK_N, REST, SPLIT)
    if PDL:
        if not EARLY:
            gdc_launch_dependents()
        gdc_wait()
    if ALONE:
        x = tl.load(x_ptr + tl.arange(0, K))
        if NORM:
            SIZE: tl.constexpr = K if K < PIECE else PIECE
            squares = squares_of_row(tl.reshape(x, [K // SIZE, SIZE]))
            x = normed(x, tl.rsqrt(tl.fma(squares, 1.0 / K, eps)), norm)
        x = tl.broadcast_to(x[None, :], [COLUMNS, K])
    else:
        x = _rows_of_x(x_ptr, norm, M, eps, K, 0, FIRST, COLUMNS, SPLIT, NORM)
    if REST:
        x_rest = _rows_of_x(x_ptr, norm, M, eps, K, FIRST, REST, COLUMNS, SPLIT, False)
    m = tl.arange(0, BLOCK_M)
    n = at_n + tl.arange(0, BLOCK_N)
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    if RESIDUAL:
        before = tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    acc = tl.zeros((BLOCK_N * SPLIT, COLUMNS), tl.float32)
    acc = tl.dot(w, x.T, acc, input_precision="ieee")
    if REST:
        acc = tl.dot(w_rest, x_rest.T, acc, input_precision="ieee")
    if SPLIT == 1:
        y = acc.T
    else:
        acc = tl.reshape(acc, [BLOCK_N, SPLIT, BLOCK_M, SPLIT])
        share = tl.arange(0, SPLIT)
        equal = share[None, :, None, None] == share[None, None, None, :]
        parts = tl.sum(tl.where(equal, acc, 0.0), 1)  # of one number each
        y = _sum_in_order(parts.permute(1, 0, 2), BLOCK_M, BLOCK_N, SPLIT)
    if RESIDUAL:
        if APART:
            y = y.to(x_ptr.dtype.element_ty).to(tl.float32)
        y += before
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)


def takes(block_k: int, split: int, *, norm: bool) -> bool:
    """Whether shares are of two powers of two columns, or of one where there is a norm; those of
    several stand behind it."""
    return block_k.bit_count() <= (1 if norm and split == 1 else 2)


def _box(weight: Tensor, split: int, size: int) -> TensorDescriptor:
    """Of STACK rows of as many columns: weight rows, and where there are several the shares of
    each."""
    columns, width = weight.shape
    if split == 1:
        return TensorDescriptor(weight, [columns, width], [width, 1], [STACK, size])
    shape, strides = [columns, split, width // split], [width, width // split, 1]
    return TensorDescriptor(weight, shape, strides, [STACK // split, split, size])


def stacked(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    split: int,
    block_k: int,
    early: bool,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    apart: bool = False,
    pdl: bool = False,
) -> None:
    """out = x @ weight.T, with what stands around it. x: [M, K], M up to 16; weight: [N, K]; out
    may be residual. block_k: of a share, all of it.

    apart: what a residual is added to is rounded to x's dtype first. Raises ValueError for more
    rows, shares that it does not take, or a norm before them."""
    (rows, width), columns = x.shape, weight.shape[0]
    if rows > SIDE_ROWS:
        raise ValueError(f"{rows} rows, of which this kernel takes {SIDE_ROWS}")
    if width != split * block_k or not takes(block_k, split, norm=norm_weight is not None):
        raise ValueError(f"{split} shares of {block_k} columns of {width}")
    first = 1 << (block_k.bit_length() - 1)
    rest = block_k - first
    boxes = [_box(weight, split, size) for size in (first, rest or first)]
    _stacked_kernel[(triton.cdiv(columns * split, STACK),)](
        x,
        *boxes,
        out,
        out if residual is None else residual,
        x if norm_weight is None else norm_weight,
        rows,
        columns,
        eps,
        K=width,
        FIRST=first,
        REST=rest,
        BLOCK_M=max(LEAST // split, triton.next_power_of_2(rows)),
        BLOCK_N=STACK // split,
        SPLIT=split,
        NORM=norm_weight is not None,
        ALONE=rows == split == 1,
        RESIDUAL=residual is not None,
        APART=apart,
        EARLY=early,
        PDL=pdl,
        num_warps=4,
        launch_pdl=pdl,
    )
