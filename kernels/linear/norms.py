"""RMSNorm, SiLU·mul and the residual, where they stand apart from the products around them.

Invariant: one program computes one row (or a slice of it) in fp32 and rounds once, so a row's
result does not depend on the rows beside it.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_SILU_BLOCK = 1024  # elements of one row a program of silu_mul
_SHARES_BLOCK = 1024  # and of add_shares


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


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, room: int = 0, pdl: bool = False) -> Tensor:
    """RMSNorm over the last axis. x: [..., H] contiguous; weight: [H]. Returns [..., H].

    room: of [T, H], rows that the result's storage is to have room for."""
    out = torch.empty_like(x) if room <= len(x) else x.new_empty(room, *x.shape[1:])[: len(x)]
    width = x.shape[-1]
    rows = x.numel() // width
    if rows:
        block = triton.next_power_of_2(width)
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
