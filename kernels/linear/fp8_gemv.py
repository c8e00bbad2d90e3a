"""Matrix-vector products of an FP8 weight, without tensor cores: one row, quantized on the way.

Invariant: a program owns BLOCK_N rows of the weight, holds them whole in registers and has fetched
them before it waits for the kernel before. The row of x is normed, rounded and quantized by every
program for itself, to the numbers that fp8_quantize.py makes; that costs less than a kernel more.

Order of the sum over K, in fp32: 16 neighbouring columns by one thread, times the scales of their
block; a thread's pieces in order of their columns; then a tree over the threads.

Around the product: RMSNorm of x before it, SiLU·mul and the residual after it.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# mypy: disable-error-code="var-annotated, attr-defined"

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.linear.fp8_quantize import group_scales, quotient
from quire.kernels.weight import Weight

_PIECE = 16  # columns of a thread: 16 bytes, one load
_LANES_A_GROUP = 8  # threads that share a scale
_HELD = 96  # most registers of weights a thread


@triton.jit
def _load_weights(
    w_ptr, n, rows, START: tl.constexpr, K: tl.constexpr, LANES: tl.constexpr, MASK_N: tl.constexpr
):
    """A tile [len(n), LANES, 16] of the weight from column START on; zeros outside."""
    k = START + tl.arange(0, LANES)[:, None] * 16 + tl.arange(0, 16)[None, :]
    at = w_ptr + n[:, None, None] * K + k[None, :, :]
    if MASK_N:
        w = tl.load(at, mask=(n < rows)[:, None, None] & (k < K)[None, :, :], other=0.0)
    elif START + LANES * 16 <= K:
        w = tl.load(at)
    else:
        w = tl.load(at, mask=(k < K)[None, :, :], other=0.0)
    return w


@triton.jit
def _load_row(ptr, START: tl.constexpr, K: tl.constexpr, LANES: tl.constexpr):
    """Columns of one row, in fp32, [LANES / 8, 128]."""
    k = START + tl.arange(0, LANES // 8)[:, None] * 128 + tl.arange(0, 128)[None, :]
    if START + LANES * 16 <= K:
        x = tl.load(ptr + k)
    else:
        x = tl.load(ptr + k, mask=k < K, other=0.0)
    return x.to(tl.float32)


@triton.jit
def _load_scales(ws_ptr, block, START: tl.constexpr, K: tl.constexpr, LANES: tl.constexpr):
    """The scales of one row of blocks, for each group of columns: [LANES / 8]."""
    group = START // 128 + tl.arange(0, LANES // 8)
    GROUPS: tl.constexpr = (K + 127) // 128
    return tl.load(ws_ptr + block * GROUPS + group, mask=group < GROUPS, other=0.0)


@triton.jit
def _spread(scale, LANES: tl.constexpr):
    """A number for each group as one for each thread: [LANES / 8] -> [LANES]."""
    return tl.broadcast_to(scale[:, None], (LANES // 8, 8)).reshape(LANES)


@triton.jit
def _add_product(acc, w, x, scale):
    """acc + the sum of 16 columns each: w: [N, LANES, 16], x: [LANES, 16], scale: [LANES]."""
    return acc + tl.sum(w.to(tl.float32) * x[None, :, :], 2) * scale[None, :]


@triton.jit
def _fp8_gemv_kernel(
    x_ptr,  # [K]
    w_ptr,  # [N, K] e4m3; with SILU [2 * N, K], gate rows then up rows
    ws_ptr,  # [ceil(rows of w / 128), ceil(K / 128)] fp32
    out_ptr,  # [N]
    residual_ptr,  # [N], read if RESIDUAL; may be out_ptr
    norm_ptr,  # [K], read if NORM
    N,
    eps,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,  # divides 128
    LANES: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SILU: tl.constexpr,
    MASK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(N / BLOCK_N),)."""
    first = tl.program_id(0) * BLOCK_N
    n = (first + tl.arange(0, BLOCK_N)).to(tl.int64)
    STEP: tl.constexpr = LANES * 16
    CHUNKS: tl.constexpr = (K + STEP - 1) // STEP
    w = ()
    ws = ()
    up = ()
    us = ()
    norm = ()
    for c in tl.static_range(CHUNKS):
        w = w + (_load_weights(w_ptr, n, N, c * STEP, K, LANES, MASK_N),)  # noqa: RUF005
        ws = ws + (_load_scales(ws_ptr, first // 128, c * STEP, K, LANES),)  # noqa: RUF005
        if SILU:
            tile = _load_weights(w_ptr, N + n, 2 * N, c * STEP, K, LANES, MASK_N)
            up = up + (tile,)  # noqa: RUF005
            us = us + (_load_scales(ws_ptr, (N + first) // 128, c * STEP, K, LANES),)  # noqa: RUF005
        if NORM:
            norm = norm + (_load_row(norm_ptr, c * STEP, K, LANES),)  # noqa: RUF005
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    x = ()
    squares = tl.zeros((LANES // 8, 128), tl.float32)
    inverse = 1.0
    if NORM:
        for c in tl.static_range(CHUNKS):
            x = x + (_load_row(x_ptr, c * STEP, K, LANES),)  # noqa: RUF005
            squares += x[c] * x[c]
        inverse = 1.0 / tl.sqrt(tl.sum(tl.sum(squares, 1), 0) / K + eps)
    acc = tl.zeros((BLOCK_N, LANES), tl.float32)
    acc_up = tl.zeros((BLOCK_N, LANES), tl.float32)
    for c in tl.static_range(CHUNKS):
        if NORM:
            y = (x[c] * inverse * norm[c]).to(x_ptr.dtype.element_ty).to(tl.float32)
        else:
            y = _load_row(x_ptr, c * STEP, K, LANES)
        scale = group_scales(y)
        narrow = quotient(y, scale).to(w_ptr.dtype.element_ty).to(tl.float32)
        narrow = narrow.reshape(LANES, 16)
        acc = _add_product(acc, w[c], narrow, _spread(scale * ws[c], LANES))
        if SILU:
            acc_up = _add_product(acc_up, up[c], narrow, _spread(scale * us[c], LANES))
    z = tl.sum(acc, 1)
    if SILU:
        z = z / (1.0 + tl.exp(-z)) * tl.sum(acc_up, 1)
    if MASK_N:
        if RESIDUAL:
            z += tl.load(residual_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        tl.store(out_ptr + n, z.to(out_ptr.dtype.element_ty), mask=n < N)
    else:
        if RESIDUAL:
            z += tl.load(residual_ptr + n).to(tl.float32)
        tl.store(out_ptr + n, z.to(out_ptr.dtype.element_ty))


def gemv(
    x: Tensor,
    weight: Weight,
    out: Tensor,
    *,
    block_n: int,
    warps: int,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    silu: bool = False,
    pdl: bool = False,
) -> None:
    """out = x @ weight.T, with what `linear_fp8` may put around it. x: [1, K], not yet quantized.

    block_n: weight rows a program, a divisor of 128; warps: of a program. out may be residual.
    With silu the gate has a multiple of 128 rows.
    """
    width = x.shape[1]
    columns = out.shape[1]
    _fp8_gemv_kernel[(triton.cdiv(columns, block_n),)](
        x,
        weight.data,
        weight.scale,
        out,
        out if residual is None else residual,
        x if norm_weight is None else norm_weight,
        columns,
        eps,
        K=width,
        BLOCK_N=block_n,
        LANES=lanes(width, warps),
        NORM=norm_weight is not None,
        RESIDUAL=residual is not None,
        SILU=silu,
        MASK_N=columns % block_n != 0,
        PDL=pdl,
        num_warps=warps,
        launch_pdl=pdl,
    )


def lanes(width: int, warps: int) -> int:
    """Pieces of 16 columns that a program takes at a time: at most one a thread, and whole groups;
    of those numbers the one that goes over the row with the fewest empty pieces."""
    pieces = triton.cdiv(width, _PIECE)
    sizes = [
        _LANES_A_GROUP << shift for shift in range(12) if _LANES_A_GROUP << shift <= 32 * warps
    ]
    return min(sizes, key=lambda size: (triton.cdiv(pieces, size) * size, -size))


def fits(width: int, block_n: int, warps: int, silu: bool) -> bool:
    """Whether a program's share of the weights stays in registers."""
    return block_n * width * (2 if silu else 1) <= 4 * _HELD * 32 * warps
