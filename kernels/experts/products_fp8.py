"""The two products of experts with FP8 weights.

Invariant: `out[row, n]` is the sum over groups of 128 columns, in order, in fp32, of what the
tensor cores make of one group times both its scales; it is rounded once, after SiLU·mul where that
stands behind the product. So a row's result depends neither on the tiles nor on the rows beside it.
Rows and tiles are those of products.py, with 64 numbers or more on the M side of the instruction:
smaller instructions add up a group in another order. Many rows stand on that side, and a thread
then holds few of their scales.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from quire.kernels.experts import tiles as tiling
from quire.kernels.experts.products import box, rows_of
from quire.kernels.experts.sorting import Order
from quire.kernels.experts.tiles import Tile
from quire.kernels.fp8_groups import GROUP
from quire.kernels.weight import Quantized, Weight


@triton.jit
def _weights(w_ptr, w_box, line, start, k, K, EVEN_K: tl.constexpr, BOXED: tl.constexpr):
    """Columns start + k of an expert's lines: [BLOCK_N, 128] e4m3."""
    if BOXED:
        w = w_box.load([line, start])
    elif EVEN_K:
        w = tl.load(w_ptr + line[:, None] * K + (start + k)[None, :])
    else:
        at = w_ptr + line[:, None] * K + (start + k)[None, :]
        w = tl.load(at, mask=(start + k < K)[None, :], other=0.0)
    return w


@triton.jit
def _add(acc, x, w, x_scale, w_scale, SWAP: tl.constexpr):
    """acc + x . w^T of one group times its scales, transposed with SWAP."""
    scale = x_scale * w_scale
    if SWAP:
        acc += tl.dot(w, x.T) * scale[None, :]
    else:
        acc += tl.dot(x, w.T) * scale[:, None]
    return acc


@triton.jit
def _store(out_ptr, acc, to, n, real, N, SWAP: tl.constexpr):
    """A tile's columns n to the rows `to`, of which some are real."""
    if SWAP:
        acc = acc.T
    at = out_ptr + to.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=real[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=["most_tiles"])
def _grouped_fp8_kernel(
    x_ptr,  # [T, K] e4m3 with SILU, else [P, K]
    x_box,  # a descriptor of the same, read in place of x_ptr where TURNS > 1
    x_scale_ptr,  # [T or P, GROUPS] fp32
    w_ptr,  # [E, N, K] e4m3; with SILU [E, 2 * N, K], gate rows then up rows
    w_box,  # a descriptor of the same as [lines, K], read where BOXED in place of w_ptr
    w_scale_ptr,  # [E, N / 128, GROUPS] fp32, with SILU [E, 2 * N / 128, GROUPS]
    out_ptr,  # [P, N]: with SILU by place, else by pair
    experts_ptr,  # [P] int64, read unless SORTED
    pairs_ptr,  # [P] int32, read if SORTED
    tiles_ptr,  # [3, most_tiles] int32, read if SORTED
    most_tiles,
    N,
    K,
    GROUPS,
    PER_TOKEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # a divisor of 128
    TURNS: tl.constexpr,  # more than 1: SORTED, BOXED, N a multiple of BLOCK_N, 128; no SILU
    SILU: tl.constexpr,
    SORTED: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN_K: tl.constexpr,
    BOXED: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(N / (TURNS * BLOCK_N)) * most_tiles,): programs of one tile stand together."""
    blocks = tl.cdiv(N, TURNS * BLOCK_N)
    tile = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * (TURNS * BLOCK_N)
    n = first + tl.arange(0, BLOCK_N)
    k = tl.arange(0, 128)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    expert, at, pair, real = rows_of(
        experts_ptr, pairs_ptr, tiles_ptr, tile, most_tiles, BLOCK_M, SORTED
    )
    if tl.sum(real.to(tl.int32), 0) > 0:
        row = (pair // PER_TOKEN if SILU else at).to(tl.int64)
        at_x = x_ptr + row[:, None] * K + k[None, :]
        begin = tl.min(at, 0)
        at_x_scale = x_scale_ptr + row * GROUPS
        # Columns past the end read other lines: what they give is never stored.
        line = expert * (2 * N if SILU else N)
        if BOXED:
            line = (line + first).to(tl.int32)
        else:
            line = line + tl.minimum(n, N - 1)
        lines_of_scales = tl.cdiv(N, 128)
        scales = expert * (2 * lines_of_scales if SILU else lines_of_scales) + first // 128
        at_scale = w_scale_ptr + scales * GROUPS
        at_up_scale = at_scale + lines_of_scales.to(tl.int64) * GROUPS
        acc = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
        up = acc
        # Scales are read a group ahead: nothing waits for them.
        x_scale = tl.load(at_x_scale)
        w_scale = tl.load(at_scale)
        up_scale = w_scale
        if SILU:
            up_scale = tl.load(at_up_scale)
        turns = tl.minimum(TURNS, (N - first) // BLOCK_N) if TURNS > 1 else 1
        # One loop over all turns, so that what the next one begins with is fetched in this one.
        for step in tl.range(0, turns * GROUPS, num_stages=STAGES):
            turn = step // GROUPS if TURNS > 1 else 0
            group = step - turn * GROUPS
            start = group * 128
            following = tl.minimum(step + 1, turns * GROUPS - 1)
            next_x_scale = tl.load(at_x_scale + (following % GROUPS if TURNS > 1 else following))
            next_scale = tl.load(at_scale + following)
            if TURNS > 1:
                x = x_box.load([begin, start])
            elif EVEN_K:
                x = tl.load(at_x + start)
            else:
                x = tl.load(at_x + start, mask=(start + k < K)[None, :], other=0.0)
            at_line = line + turn * BLOCK_N
            w = _weights(w_ptr, w_box, at_line, start, k, K, EVEN_K, BOXED)
            acc = _add(acc, x, w, x_scale, w_scale, SWAP)
            if SILU:
                next_up_scale = tl.load(at_up_scale + following)
                w = _weights(w_ptr, w_box, line + N, start, k, K, EVEN_K, BOXED)
                up = _add(up, x, w, x_scale, up_scale, SWAP)
                up_scale = next_up_scale
            x_scale = next_x_scale
            w_scale = next_scale
            if TURNS > 1:  # noqa: SIM102 (told when compiled, and only then)
                if group == GROUPS - 1:
                    _store(out_ptr, acc, pair, n + turn * BLOCK_N, real, N, SWAP)
                    acc = tl.zeros_like(acc)
        if SILU:
            acc = acc / (1.0 + tl.exp(-acc)) * up
        if TURNS == 1:
            _store(out_ptr, acc, at if SILU else pair, n, real, N, SWAP)


def grouped_fp8(
    x: Quantized,
    weight: Weight,
    out: Tensor,
    experts: Tensor,
    order: Order | None,
    tile: Tile,
    block_m: int,
    *,
    silu: bool,
    pdl: bool = False,
) -> None:
    """As `products.grouped`, with an FP8 weight and x quantized by rows. The tile's block_k is 128,
    its block_n divides 128; with silu N is a multiple of 128. Several turns are for sorted rows
    through descriptors, without silu; else there is one."""
    assert weight.scale is not None and tile.block_k == GROUP and GROUP % tile.block_n == 0
    pairs, columns = out.shape
    width = weight.data.shape[2]
    boxed = tile.boxed and width % 16 == 0
    in_turn = boxed and not silu and order is not None and tile.block_n == GROUP
    turns = tile.turns if in_turn and columns % GROUP == 0 else 1
    most = pairs
    if order is not None:
        most = tiling.most_tiles(pairs, weight.data.shape[0], block_m)
    _grouped_fp8_kernel[(triton.cdiv(columns, turns * tile.block_n) * most,)](
        x.data,
        TensorDescriptor.from_tensor(x.data, [block_m, GROUP]) if turns > 1 else None,
        x.scale,
        weight.data,
        box(weight.data, tile) if boxed else None,
        weight.scale,
        out,
        experts,
        experts if order is None else order.pairs,
        experts if order is None else order.tiles,
        most,
        columns,
        width,
        weight.scale.shape[2],
        PER_TOKEN=experts.shape[1],
        BLOCK_M=block_m,
        BLOCK_N=tile.block_n,
        TURNS=turns,
        SILU=silu,
        SORTED=order is not None,
        SWAP=tile.swap,
        EVEN_K=width % GROUP == 0,
        BOXED=boxed,
        STAGES=tile.stages,
        PDL=pdl,
        num_warps=tile.warps,
        launch_pdl=pdl,
    )
