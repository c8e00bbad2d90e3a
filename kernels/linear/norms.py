"""RMSNorm, SiLU·mul and the residual, where they stand apart from the products around them.

Invariant: one program computes one row (or a slice of it) in fp32 and rounds once, so a row's
result does not depend on the rows beside it.

A norm in one order (`ordered`) has the same bits in every kernel that computes it, whatever its
layout: squares are added along a tree of neighbours, and a sum of two is the same either way round.
Squares of numbers of 16 bits are exact in fp32, so it does not matter which of them a compiler
fuses with the addition behind it.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.padding import new_rows

_SILU_BLOCK = 1024  # elements of one row a program of silu_mul
_SHARES_BLOCK = 1024  # and of add_shares
PIECE = tl.constexpr(256)  # of a row, whose squares a warp adds


@triton.jit
def added(x):
    """[rows, a power of two] fp32 -> [rows, 1], neighbours first."""
    for _ in tl.static_range(16):
        if x.shape[1] > 1:
            x = tl.sum(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]), 2)
    return x


@triton.jit
def sum_of_squares(x):
    """[rows, a power of two] of 16 bits -> [rows, 1] fp32."""
    return added(x.to(tl.float32) * x.to(tl.float32))


@triton.jit
def added_pieces(sums, FIRST: tl.constexpr, COUNT: tl.constexpr, ALL: tl.constexpr):
    """The sum of a row's pieces from their own, of which there are ALL: those of [FIRST, FIRST +
    COUNT), a power of two."""
    HALF: tl.constexpr = COUNT // 2
    if COUNT == 1:
        total = sums[FIRST]
    else:
        total = added_pieces(sums, FIRST, HALF, ALL)
        if FIRST + HALF < ALL:
            total += added_pieces(sums, FIRST + HALF, HALF, ALL)
    return total


@triton.jit
def squares_of_row(x):
    """Those of one row, [pieces, columns]: a number."""
    return tl.sum(added(tl.reshape(sum_of_squares(x), [1, x.shape[0]])))  # which is of one


@triton.jit
def scale_rows(squares, eps, K: tl.constexpr):
    """1/rms of rows of K numbers by their sums of squares: [rows, 1] fp32 both."""
    # Each in its own place: else rows would lie in what they are scaled in as sums of them do.
    rows: tl.constexpr = squares.shape[0]
    total = tl.gather(tl.reshape(squares, [rows]), tl.arange(0, rows), 0)
    return tl.rsqrt(tl.fma(total, 1.0 / K, eps))[:, None]


@triton.jit
def normed(x, scale, weight):
    """Rows of x, scaled and rounded as where they are stored. scale: of `scale_rows`; weight:
    fp32 of the same shape."""
    return (x.to(tl.float32) * scale * weight).to(x.dtype)


@triton.jit
def _rms_norm_kernel(
    x_ptr,  # [rows, K]
    weight_ptr,  # [K]
    out_ptr,  # [rows, K]
    eps,
    K: tl.constexpr,
    BLOCK: tl.constexpr,  # K, rounded up to a power of two
    PDL: tl.constexpr,
):
    """grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(x_ptr + row * K + k, mask=k < K, other=0.0).to(tl.float32)
    y = x * (1.0 / tl.sqrt(tl.sum(x * x, 0) / K + eps)) * weight
    tl.store(out_ptr + row * K + k, y.to(out_ptr.dtype.element_ty), mask=k < K)


@triton.jit
def _ordered_norm_kernel(
    x_ptr,  # [rows, K]
    weight_ptr,  # [K]
    out_ptr,  # [rows, K]
    eps,
    K: tl.constexpr,
    PIECES: tl.constexpr,  # of K, rounded up to a power of two
    SIZE: tl.constexpr,  # of one
    PDL: tl.constexpr,
):
    """grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    k = (tl.arange(0, PIECES) * SIZE)[:, None] + tl.arange(0, SIZE)[None, :]
    weight = tl.load(weight_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(x_ptr + row * K + k, mask=k < K, other=0.0)
    scale = tl.rsqrt(tl.fma(squares_of_row(x), 1.0 / K, eps))
    tl.store(out_ptr + row * K + k, normed(x, scale, weight), mask=k < K)


@triton.jit
def _silu_mul_kernel(
    x_ptr,  # [rows, 2 * I], gate then up
    out_ptr,  # [rows, I]
    I,  # noqa: E741
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (rows, ceil(I / BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    gate = tl.load(x_ptr + row * 2 * I + i, mask=i < I, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * I + I + i, mask=i < I, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * I + i, y.to(out_ptr.dtype.element_ty), mask=i < I)


@triton.jit
def _add_shares_kernel(
    shares_ptr,  # [SPLIT, rows or more, K] fp32
    residual_ptr,  # [rows, K], read and written
    size,  # rows * K
    stride,  # of a share
    SPLIT: tl.constexpr,
    APART: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(size / BLOCK),)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for s in tl.static_range(SPLIT):
        total += tl.load(shares_ptr + s * stride + i, mask=i < size, other=0.0)
    if APART:
        total = total.to(residual_ptr.dtype.element_ty).to(tl.float32)
    total += tl.load(residual_ptr + i, mask=i < size, other=0.0).to(tl.float32)
    tl.store(residual_ptr + i, total.to(residual_ptr.dtype.element_ty), mask=i < size)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    room: bool = False,
    ordered: bool = False,
    pdl: bool = False,
) -> Tensor:
    """RMSNorm over the last axis. x: [..., H] contiguous; weight: [H]. Returns [..., H].

    room: the result has room for the rows that pad the library's product of it (`padding.py`).
    ordered: of 16 bits, with the bits of a norm inside a product (see above)."""
    out = new_rows(x, *x.shape) if room else torch.empty_like(x)
    width = x.shape[-1]
    rows = x.numel() // width
    block = triton.next_power_of_2(width)
    if rows and ordered:
        size = min(block, PIECE.value)
        _ordered_norm_kernel[(rows,)](
            x, weight, out, eps, K=width, PIECES=block // size, SIZE=size, PDL=pdl,
            num_warps=min(8, block // size), launch_pdl=pdl,
        )  # fmt: skip
    elif rows:
        warps = min(8, max(1, block // 512))
        _rms_norm_kernel[(rows,)](
            x, weight, out, eps, K=width, BLOCK=block, PDL=pdl, num_warps=warps, launch_pdl=pdl
        )
    return out


def silu_mul(x: Tensor, *, pdl: bool = False) -> Tensor:
    """silu(gate) * up. x: [T, 2 * I] contiguous, gate and up side by side. Returns [T, I]."""
    rows, double = x.shape
    inner = double // 2
    out = x.new_empty(rows, inner)
    if rows:
        grid = (rows, triton.cdiv(inner, _SILU_BLOCK))
        _silu_mul_kernel[grid](
            x, out, inner, BLOCK=_SILU_BLOCK, PDL=pdl, num_warps=4, launch_pdl=pdl
        )
    return out


def add_shares(
    shares: Tensor, residual: Tensor, *, pdl: bool = False, apart: bool = False
) -> Tensor:
    """residual + the sum of shares in index order, in the residual's storage. apart: the sum is
    rounded to the residual's dtype first.

    shares: [split, T or more, N] fp32 contiguous; residual: [T, N] contiguous.
    """
    size = residual.numel()
    if size:
        _add_shares_kernel[(triton.cdiv(size, _SHARES_BLOCK),)](
            shares, residual, size, shares.stride(0), SPLIT=shares.shape[0], APART=apart,
            BLOCK=_SHARES_BLOCK, PDL=pdl, num_warps=4, launch_pdl=pdl,
        )  # fmt: skip
    return residual
