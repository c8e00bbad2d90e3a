"""LayerNorm with the bias before it, and GELU with the bias before it, of models like GPT-2.

Invariant: one program computes one row of a norm (or a slice of an activation) in fp32, so a row's
result does not depend on the rows beside it. A bias is added to a product as PyTorch adds it: the
sum is rounded to the product's dtype before anything is made of it.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_GELU_BLOCK = 1024  # elements of one row a program of gelu_new


@triton.jit
def _layer_norm_kernel(
    x_ptr,  # [rows, K], written where ADDS
    weight_ptr,  # [K]
    bias_ptr,  # [K]
    add_ptr,  # [K], where ADDS
    out_ptr,  # [rows, K]
    eps,
    K: tl.constexpr,
    BLOCK: tl.constexpr,  # K, rounded up to a power of two
    ADDS: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(x_ptr + row * K + k, mask=k < K, other=0.0).to(tl.float32)
    if ADDS:
        x += tl.load(add_ptr + k, mask=k < K, other=0.0).to(tl.float32)
        rounded = x.to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + row * K + k, rounded, mask=k < K)
        x = rounded.to(tl.float32)
    centred = tl.where(k < K, x - tl.sum(x, 0) / K, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / K + eps)
    y = centred * scale * weight + bias
    tl.store(out_ptr + row * K + k, y.to(out_ptr.dtype.element_ty), mask=k < K)


@triton.jit
def _gelu_new_kernel(
    x_ptr,  # [rows, I]
    bias_ptr,  # [I]
    out_ptr,  # [rows, I]
    I,  # noqa: E741
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (rows, ceil(I / BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    bias = tl.load(bias_ptr + i, mask=i < I, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(x_ptr + row * I + i, mask=i < I, other=0.0).to(tl.float32)
    x = (x + bias).to(x_ptr.dtype.element_ty).to(tl.float32)
    # (1 + tanh z) / 2 is the logistic function of 2 z; 0.79788456 is the root of 2 / pi.
    twice = 2.0 * 0.7978845608028654 * (x + 0.044715 * x * x * x)
    y = x / (1.0 + tl.exp(-twice))
    tl.store(out_ptr + row * I + i, y.to(out_ptr.dtype.element_ty), mask=i < I)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    add: Tensor | None = None,
    pdl: bool = False,
) -> Tensor:
    """LayerNorm over the last axis. x: [T, H] contiguous, written where there is an `add`; weight,
    bias, add: [H]. Returns [T, H]. See the reference."""
    out = torch.empty_like(x)
    rows, width = x.shape
    if rows:
        block = triton.next_power_of_2(width)
        _layer_norm_kernel[(rows,)](
            x, weight, bias, bias if add is None else add, out, eps, K=width, BLOCK=block,
            ADDS=add is not None, PDL=pdl, num_warps=min(8, max(1, block // 512)), launch_pdl=pdl,
        )  # fmt: skip
    return out


def gelu_new(x: Tensor, bias: Tensor, *, pdl: bool = False) -> Tensor:
    """GELU of x + bias. x: [T, I] contiguous; bias: [I]. Returns [T, I]. See the reference."""
    rows, inner = x.shape
    out = torch.empty_like(x)
    if rows:
        grid = (rows, triton.cdiv(inner, _GELU_BLOCK))
        _gelu_new_kernel[grid](
            x, bias, out, inner, BLOCK=_GELU_BLOCK, PDL=pdl, num_warps=4, launch_pdl=pdl
        )
    return out
