"""Matrix-vector products of an FP8 weight, without tensor cores: one row, quantized on the way.

Invariant: a program takes BLOCK_N rows of the weight at a time, and always holds the next ones in
registers before it computes with those it has; the first it has fetched before it waits for the
kernel before. The row of x is normed, rounded and quantized by every program for itself, once for
all its rows of the weight, to the numbers that fp8_quantize.py makes.

Order of the sum over K: 16 neighbouring columns by one thread, even and odd ones apart, in order,
in fp16, which holds every product of two e4m3 numbers (those of x are taken down by 2^-5, so that
no sum overflows); what they give is added in fp32, times the scales of their block; a thread's
pieces in order of their columns; then a tree over the threads. So two numbers of the weight take
one conversion and one product, where fp32 takes three and two.

Around the product: RMSNorm of x before it, SiLU·mul and the residual after it.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# mypy: disable-error-code="var-annotated, attr-defined"

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.fp8_groups import group_scales, quotient
from quire.kernels.linear import product_options
from quire.kernels.weight import Weight

_PIECE = 16  # columns of a thread: 16 bytes, one load
_LANES_A_GROUP = 8  # threads that share a scale

_PRODUCTS = tl.constexpr(
    """{
    .reg .b16 w<8>, even, odd;
    .reg .b32 h<8>;
    .reg .f32 a, b;
    mov.b32 {w0, w1}, $1;
    mov.b32 {w2, w3}, $2;
    mov.b32 {w4, w5}, $3;
    mov.b32 {w6, w7}, $4;
    cvt.rn.f16x2.e4m3x2 h0, w0;
    cvt.rn.f16x2.e4m3x2 h1, w1;
    cvt.rn.f16x2.e4m3x2 h2, w2;
    cvt.rn.f16x2.e4m3x2 h3, w3;
    cvt.rn.f16x2.e4m3x2 h4, w4;
    cvt.rn.f16x2.e4m3x2 h5, w5;
    cvt.rn.f16x2.e4m3x2 h6, w6;
    cvt.rn.f16x2.e4m3x2 h7, w7;
    mul.rn.f16x2 h0, h0, $5;
    fma.rn.f16x2 h0, h1, $6, h0;
    fma.rn.f16x2 h0, h2, $7, h0;
    fma.rn.f16x2 h0, h3, $8, h0;
    fma.rn.f16x2 h0, h4, $9, h0;
    fma.rn.f16x2 h0, h5, $10, h0;
    fma.rn.f16x2 h0, h6, $11, h0;
    fma.rn.f16x2 h0, h7, $12, h0;
    mov.b32 {even, odd}, h0;
    cvt.f32.f16 a, even;
    cvt.f32.f16 b, odd;
    add.f32 $0, a, b;
    }"""
)


@triton.jit
def _load_weights(w_ptr, n, there, START: tl.constexpr, K: tl.constexpr, LANES: tl.constexpr):
    """A tile [len(n), LANES, 4] of the weight, four numbers each, from column START on: zeros past
    K, anything where a row is not there, which is not to be stored."""
    k = START // 4 + tl.arange(0, LANES)[:, None] * 4 + tl.arange(0, 4)[None, :]
    at = w_ptr + n[:, None, None] * (K // 4) + k[None, :, :]
    ok = there[:, None, None]
    if START + LANES * 16 <= K:
        w = tl.load(at, mask=ok)
    else:
        w = tl.load(at, mask=ok & (k < K // 4)[None, :, :], other=0)
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
    """The scales of one row of blocks, for each thread's columns: [LANES]."""
    group = START // 128 + tl.arange(0, LANES) // 8
    GROUPS: tl.constexpr = (K + 127) // 128
    return tl.load(ws_ptr + block * GROUPS + group, mask=group < GROUPS, other=0.0)


@triton.jit
def _load_tiles(
    w_ptr, ws_ptr, first, end, begin, N,
    K: tl.constexpr, BLOCK_N: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """BLOCK_N rows of one half of the weight, which begins at row `begin` and has N: a tile for
    each chunk of columns, and its scales. From row `end` on nothing is read of the weight."""
    n = first + tl.arange(0, BLOCK_N)
    row = (begin + n).to(tl.int64)
    block = (begin + tl.minimum(first, N - 1)) // 128
    w = ()
    ws = ()
    for c in tl.static_range(CHUNKS):
        w = w + (_load_weights(w_ptr, row, n < end, c * LANES * 16, K, LANES),)  # noqa: RUF005
        ws = ws + (_load_scales(ws_ptr, block, c * LANES * 16, K, LANES),)  # noqa: RUF005
    return w, ws


@triton.jit
def _pairs(y, LANES: tl.constexpr):
    """[LANES / 8, 128] fp16 as eight pairs of neighbours for each thread: 8 times [LANES] int32."""
    even, odd = y.reshape(LANES, 8, 2).split()
    low = even.to(tl.uint16, bitcast=True).to(tl.int32)
    high = odd.to(tl.uint16, bitcast=True).to(tl.int32)
    a, b = (low | (high << 16)).reshape(LANES, 2, 2, 2).split()
    p0, p2 = a.reshape(LANES, 2, 2).split()
    q0, q2 = b.reshape(LANES, 2, 2).split()
    x0, x4 = p0.split()
    x2, x6 = p2.split()
    x1, x5 = q0.split()
    x3, x7 = q2.split()
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def _take_row(
    x_ptr, narrow_type, eps, norm,
    K: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """The row of x as e4m3 numbers times 2^-5, in pairs, and what each thread's are to be
    multiplied by, [LANES]; of each chunk. norm: the norm's weights, a chunk each, if NORM."""
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
        fewer = quotient(y, scale).to(narrow_type).to(tl.float16) * 0.03125
        narrow = narrow + (_pairs(fewer.to(tl.float16), LANES),)  # noqa: RUF005
        spread = tl.broadcast_to(scale[:, None], (LANES // 8, 8)).reshape(LANES)
        scales = scales + (spread * 32.0,)  # noqa: RUF005
    return narrow, scales


@triton.jit
def _piece(w, x, BLOCK_N: tl.constexpr, LANES: tl.constexpr):
    """The sums of 16 columns each, [BLOCK_N, LANES]. w: [BLOCK_N, LANES, 4]; x: 8 times [LANES]."""
    even, odd = w.reshape(BLOCK_N, LANES, 2, 2).split()
    w0, w2 = even.split()
    w1, w3 = odd.split()
    x0, x1, x2, x3, x4, x5, x6, x7 = x
    return tl.inline_asm_elementwise(
        _PRODUCTS,
        "=f,r,r,r,r,r,r,r,r,r,r,r,r",
        [
            w0, w1, w2, w3,
            x0[None, :], x1[None, :], x2[None, :], x3[None, :],
            x4[None, :], x5[None, :], x6[None, :], x7[None, :],
        ],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )  # fmt: skip


@triton.jit
def _product(
    w, ws, narrow, scales, BLOCK_N: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr
):
    """The sums of BLOCK_N rows: [BLOCK_N] fp32."""
    acc = tl.zeros((BLOCK_N, LANES), tl.float32)
    for c in tl.static_range(CHUNKS):
        acc += _piece(w[c], narrow[c], BLOCK_N, LANES) * (scales[c] * ws[c])[None, :]
    return tl.sum(acc, 1)


@triton.jit(do_not_specialize=["turns"])
def _fp8_gemv_kernel(
    x_ptr,  # [K]
    w_ptr,  # [N, K / 4] int32, four e4m3 each; with SILU [2 * N, K / 4], gate rows then up rows
    ws_ptr,  # [ceil(rows of w / 128), ceil(K / 128)] fp32
    out_ptr,  # [N]
    residual_ptr,  # [N], read if RESIDUAL; may be out_ptr
    norm_ptr,  # [K], read if NORM
    N,
    eps,
    turns,  # tiles a program
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,  # divides 128
    LANES: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SILU: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(N / (turns * BLOCK_N)),)."""
    CHUNKS: tl.constexpr = (K + LANES * 16 - 1) // (LANES * 16)
    first = tl.program_id(0) * (turns * BLOCK_N)
    end = tl.minimum(first + turns * BLOCK_N, N)
    w, ws = _load_tiles(w_ptr, ws_ptr, first, end, 0, N, K, BLOCK_N, LANES, CHUNKS)
    up, us = w, ws
    if SILU:
        up, us = _load_tiles(w_ptr, ws_ptr, first, end, N, N, K, BLOCK_N, LANES, CHUNKS)
    norm = ()
    if NORM:
        for c in tl.static_range(CHUNKS):
            norm = norm + (_load_row(norm_ptr, c * LANES * 16, K, LANES),)  # noqa: RUF005
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    narrow, scales = _take_row(x_ptr, tl.float8e4nv, eps, norm, K, LANES, CHUNKS, NORM)
    for start in range(first, end, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        ahead = start + BLOCK_N
        next_w, next_ws = _load_tiles(w_ptr, ws_ptr, ahead, end, 0, N, K, BLOCK_N, LANES, CHUNKS)
        if SILU:
            next_up, next_us = _load_tiles(
                w_ptr, ws_ptr, ahead, end, N, N, K, BLOCK_N, LANES, CHUNKS
            )
        if RESIDUAL:
            beside = tl.load(residual_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        z = _product(w, ws, narrow, scales, BLOCK_N, LANES, CHUNKS)
        if SILU:
            z = z / (1.0 + tl.exp(-z)) * _product(up, us, narrow, scales, BLOCK_N, LANES, CHUNKS)
            up, us = next_up, next_us
        if RESIDUAL:
            z += beside
        tl.store(out_ptr + n, z.to(out_ptr.dtype.element_ty), mask=n < N)
        w, ws = next_w, next_ws


def gemv(
    x: Tensor,
    weight: Weight,
    out: Tensor,
    *,
    block_n: int,
    warps: int,
    turns: int = 1,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    silu: bool = False,
    pdl: bool = False,
) -> None:
    """out = x @ weight.T, with what `linear_fp8` may put around it. x: [1, K], not yet quantized; K
    is a multiple of 16.

    block_n: weight rows at a time, a divisor of 128; warps: of a program; turns: tiles of so many
    rows a program, which changes no result. out may be residual. With silu the gate has a multiple
    of 128 rows.
    """
    width = x.shape[1]
    columns = out.shape[1]
    _fp8_gemv_kernel[(triton.cdiv(columns, turns * block_n),)](
        x,
        weight.data.view(torch.int32),
        weight.scale,
        *product_options.pointers(x, out, residual, norm_weight),
        columns,
        eps,
        turns,
        K=width,
        BLOCK_N=block_n,
        LANES=lanes(width, warps),
        num_warps=warps,
        **product_options.flags(residual, norm_weight, silu=silu, pdl=pdl),
    )


def lanes(width: int, warps: int) -> int:
    """Pieces of 16 columns that a program takes at a time: at most one a thread, and whole groups;
    of those numbers the one that goes over the row with the fewest empty pieces."""
    pieces = triton.cdiv(width, _PIECE)
    sizes = [
        _LANES_A_GROUP << shift for shift in range(12) if _LANES_A_GROUP << shift <= 32 * warps
    ]
    return min(sizes, key=lambda size: (triton.cdiv(pieces, size) * size, -size))


def held(width: int, block_n: int, warps: int, silu: bool) -> int:
    """Registers a thread that two tiles of weights, in 8 bits, and the row, in 16, take."""
    tiles = 2 * block_n * width * (2 if silu else 1) // 4
    return -(-(tiles + width // 2) // (32 * warps))
