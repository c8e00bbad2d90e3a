"""Activations as FP8 products take them: e4m3, with a scale for each token and each 128 columns.

Invariant: the numbers are those of `reference.fp8.quantize_rows`, whatever stands before them, and
a row's do not depend on the rows beside it. RMSNorm before it is computed in fp32 and rounded to
the activations' dtype first, as if it had been stored.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.fp8_groups import group_scales, new, quotient
from quire.kernels.weight import Quantized

_GROUPS_A_PROGRAM = 16


@triton.jit
def _store(data_ptr, scale_ptr, y, row, group, GROUPS, K, scale_row, scale_group):
    """Quantize and store groups of one row. y: [G, 128] fp32, zeros past K; group: [G]."""
    scale = group_scales(y)
    k = group[:, None] * 128 + tl.arange(0, 128)[None, :]
    narrow = quotient(y, scale).to(data_ptr.dtype.element_ty)
    tl.store(data_ptr + row * K + k, narrow, mask=k < K)
    tl.store(scale_ptr + row * scale_row + group * scale_group, scale, mask=group < GROUPS)


@triton.jit(do_not_specialize=["scale_row", "scale_group"])
def _rms_norm_quantize_kernel(
    x_ptr,  # [rows, K]
    weight_ptr,  # [K]
    data_ptr,  # [rows, K] e4m3
    scale_ptr,  # [rows, GROUPS] fp32, by its strides
    scale_row,
    scale_group,
    eps,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,  # GROUPS, rounded up to a power of two
    PDL: tl.constexpr,
):
    """grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK)
    k = group[:, None] * 128 + tl.arange(0, 128)[None, :]
    weight = tl.load(weight_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(x_ptr + row * K + k, mask=k < K, other=0.0).to(tl.float32)
    mean = tl.sum(tl.sum(x * x, 1), 0) / K
    y = x * (1.0 / tl.sqrt(mean + eps)) * weight
    y = y.to(x_ptr.dtype.element_ty).to(tl.float32)
    _store(data_ptr, scale_ptr, y, row, group, GROUPS, K, scale_row, scale_group)


@triton.jit(do_not_specialize=["scale_row", "scale_group"])
def _quantize_kernel(
    x_ptr,  # [rows, K]; with SILU [rows, 2 * K], gate then up
    data_ptr,  # [rows, K] e4m3
    scale_ptr,  # [rows, GROUPS] fp32, by its strides
    scale_row,
    scale_group,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,  # groups a program
    SILU: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (rows, ceil(GROUPS / BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    k = group[:, None] * 128 + tl.arange(0, 128)[None, :]
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    if SILU:
        gate = tl.load(x_ptr + row * 2 * K + k, mask=k < K, other=0.0).to(tl.float32)
        up = tl.load(x_ptr + row * 2 * K + K + k, mask=k < K, other=0.0).to(tl.float32)
        y = gate / (1.0 + tl.exp(-gate)) * up
        y = y.to(x_ptr.dtype.element_ty).to(tl.float32)
    else:
        y = tl.load(x_ptr + row * K + k, mask=k < K, other=0.0).to(tl.float32)
    _store(data_ptr, scale_ptr, y, row, group, GROUPS, K, scale_row, scale_group)


def quantize(
    x: Tensor, *, silu: bool = False, by_group: bool = False, pdl: bool = False
) -> Quantized:
    """Activations as they are, x: [T, K] contiguous; or silu(gate) * up, as if stored, of
    x: [T, 2 * K], gate and up side by side."""
    width = x.shape[1] // (2 if silu else 1)
    made = new(x, width, by_group=by_group)
    rows, groups = made.scale.shape
    if rows:
        block = min(_GROUPS_A_PROGRAM, triton.next_power_of_2(groups))
        _quantize_kernel[(rows, triton.cdiv(groups, block))](
            x, made.data, made.scale, *made.scale.stride(), K=width, GROUPS=groups, BLOCK=block,
            SILU=silu, PDL=pdl, num_warps=4, launch_pdl=pdl,
        )  # fmt: skip
    return made


def rms_norm_quantize(
    x: Tensor, weight: Tensor, eps: float, *, by_group: bool = False, pdl: bool = False
) -> Quantized:
    """RMSNorm over the last axis. x: [T, K] contiguous; weight: [K]."""
    rows, width = x.shape
    made = new(x, width, by_group=by_group)
    groups = made.scale.shape[1]
    if rows:
        block = triton.next_power_of_2(groups)
        _rms_norm_quantize_kernel[(rows,)](
            x, weight, made.data, made.scale, *made.scale.stride(), eps, K=width, GROUPS=groups,
            BLOCK=block, PDL=pdl, num_warps=min(8, max(1, block // 4)), launch_pdl=pdl,
        )  # fmt: skip
    return made
