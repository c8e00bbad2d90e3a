"""Matrix-vector products of an FP8 weight, without tensor cores: one row, quantized on the way.

Invariant: a program takes BLOCK_N rows of the weight at a time, and always holds the next ones in
registers before it computes with those it has; the first it has fetched before it waits for the
kernel before. The row of x is normed, rounded and quantized by every program for itself, once for
all its rows of the weight, to the numbers that fp8_quantize.py makes. That is about as many
instructions as one tile of weights takes; over several it costs less than a kernel more would.

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

from quire.kernels.linear import around
from quire.kernels.linear.fp8_quantize import group_scales, quotient
from quire.kernels.weight import Weight

_PIECE = 16  # columns of a thread: 16 bytes, one load
_LANES_A_GROUP = 8  # threads that share a scale
_HELD = 128  # most registers a thread, of two tiles of weights and of x


@triton.jit
def _load_weights(w_ptr, n, there, START: tl.constexpr, K: tl.constexpr, LANES: tl.constexpr):
    """A tile [len(n), LANES, 16] of the weight from column START on: zeros past K, anything where a
    row is not there, which is not to be stored."""
    k = START + tl.arange(0, LANES)[:, None] * 16 + tl.arange(0, 16)[None, :]
    at = w_ptr + n[:, None, None] * K + k[None, :, :]
    ok = there[:, None, None]
    if START + LANES * 16 <= K:
        w = tl.load(at, mask=ok)
    else:
        w = tl.load(at, mask=ok & (k < K)[None, :, :], other=0.0)
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
def _load_tiles(
    w_ptr, ws_ptr, first, begin, N,
    K: tl.constexpr, BLOCK_N: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """BLOCK_N rows of one half of the weight, which begins at row `begin` and has N: a tile for
    each chunk of columns, and its scales. Past the half's end nothing is read of the weight."""
    n = first + tl.arange(0, BLOCK_N)
    row = (begin + n).to(tl.int64)
    block = (begin + tl.minimum(first, N - 1)) // 128
    w = ()
    ws = ()
    for c in tl.static_range(CHUNKS):
        w = w + (_load_weights(w_ptr, row, n < N, c * LANES * 16, K, LANES),)  # noqa: RUF005
        ws = ws + (_load_scales(ws_ptr, block, c * LANES * 16, K, LANES),)  # noqa: RUF005
    return w, ws


@triton.jit
def _spread(scale, LANES: tl.constexpr):
    """A number for each group as one for each thread: [LANES / 8] -> [LANES]."""
    return tl.broadcast_to(scale[:, None], (LANES // 8, 8)).reshape(LANES)


@triton.jit
def _add_product(acc, w, x, scale):
    """acc + the sum of 16 columns each: w: [N, LANES, 16], x: [LANES, 16], scale: [LANES]."""
    return acc + tl.sum(w.to(tl.float32) * x[None, :, :], 2) * scale[None, :]


@triton.jit
def _take_row(
    x_ptr, narrow_type, eps, norm,
    K: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """The row of x as e4m3 numbers, in fp32, [LANES, 16] a chunk, and their scales, [LANES / 8].
    norm: the norm's weights, a chunk each, if NORM."""
    x = ()
    squares = tl.zeros((LANES // 8, 128), tl.float32)
    for c in tl.static_range(CHUNKS):
        x = x + (_load_row(x_ptr, c * LANES * 16, K, LANES),)  # noqa: RUF005
        if NORM:
            squares += x[c] * x[c]
    inverse = 1.0
    if NORM:
        inverse = 1.0 / tl.sqrt(tl.sum(tl.sum(squares, 1), 0) / K + eps)
    narrow = ()
    scales = ()
    for c in tl.static_range(CHUNKS):
        y = x[c]
        if NORM:
            y = (y * inverse * norm[c]).to(x_ptr.dtype.element_ty).to(tl.float32)
        scale = group_scales(y)
        fewer = quotient(y, scale).to(narrow_type).to(tl.float32).reshape(LANES, 16)
        narrow = narrow + (fewer,)  # noqa: RUF005
        scales = scales + (scale,)  # noqa: RUF005
    return narrow, scales


@triton.jit
def _product(
    w, ws, narrow, scales, BLOCK_N: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr
):
    """The sums of BLOCK_N rows: [BLOCK_N] fp32."""
    acc = tl.zeros((BLOCK_N, LANES), tl.float32)
    for c in tl.static_range(CHUNKS):
        acc = _add_product(acc, w[c], narrow[c], _spread(scales[c] * ws[c], LANES))
    return tl.sum(acc, 1)


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
    TURNS: tl.constexpr,  # tiles a program
    LANES: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SILU: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(N / (TURNS * BLOCK_N)),). The turns are unrolled: a loop that hands tiles of bytes
    on would keep each byte in a register of its own."""
    CHUNKS: tl.constexpr = (K + LANES * 16 - 1) // (LANES * 16)
    first = tl.program_id(0) * (TURNS * BLOCK_N)
    w, ws = _load_tiles(w_ptr, ws_ptr, first, 0, N, K, BLOCK_N, LANES, CHUNKS)
    if SILU:
        up, us = _load_tiles(w_ptr, ws_ptr, first, N, N, K, BLOCK_N, LANES, CHUNKS)
    norm = ()
    if NORM:
        for c in tl.static_range(CHUNKS):
            norm = norm + (_load_row(norm_ptr, c * LANES * 16, K, LANES),)  # noqa: RUF005
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    narrow, scales = _take_row(x_ptr, w_ptr.dtype.element_ty, eps, norm, K, LANES, CHUNKS, NORM)
    for turn in tl.static_range(TURNS):
        n = first + tl.arange(0, BLOCK_N)
        first += BLOCK_N
        if turn + 1 < TURNS:
            next_w, next_ws = _load_tiles(w_ptr, ws_ptr, first, 0, N, K, BLOCK_N, LANES, CHUNKS)
            if SILU:
                next_up, next_us = _load_tiles(
                    w_ptr, ws_ptr, first, N, N, K, BLOCK_N, LANES, CHUNKS
                )
        if RESIDUAL:
            beside = tl.load(residual_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        z = _product(w, ws, narrow, scales, BLOCK_N, LANES, CHUNKS)
        if SILU:
            z = z / (1.0 + tl.exp(-z)) * _product(up, us, narrow, scales, BLOCK_N, LANES, CHUNKS)
        if RESIDUAL:
            z += beside
        tl.store(out_ptr + n, z.to(out_ptr.dtype.element_ty), mask=n < N)
        if turn + 1 < TURNS:
            w, ws = next_w, next_ws
            if SILU:
                up, us = next_up, next_us


def gemv(
    x: Tensor,
    weight: Weight,
    out: Tensor,
    *,
    block_n: int,
    warps: int,
    turns: int,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    silu: bool = False,
    pdl: bool = False,
) -> None:
    """out = x @ weight.T, with what `linear_fp8` may put around it. x: [1, K], not yet quantized.

    block_n: weight rows at a time, a divisor of 128; warps: of a program; turns: tiles of so many
    rows a program, which changes no result. out may be residual. With silu the gate has a multiple
    of 128 rows.
    """
    width = x.shape[1]
    columns = out.shape[1]
    _fp8_gemv_kernel[(triton.cdiv(columns, turns * block_n),)](
        x,
        weight.data,
        weight.scale,
        *around.pointers(x, out, residual, norm_weight),
        columns,
        eps,
        K=width,
        BLOCK_N=block_n,
        TURNS=turns,
        LANES=lanes(width, warps),
        num_warps=warps,
        **around.flags(residual, norm_weight, silu=silu, pdl=pdl),
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
    """Whether two tiles of weights, in 8 bits, and the row, in 32, stay in registers."""
    tile = block_n * width * (2 if silu else 1)
    return (2 * tile) // 4 + width <= _HELD * 32 * warps
