"""The two products of experts: rows of one expert by that expert's matrix, many experts at once.

Invariant: `out[row, n]` is the sum over K in steps of BLOCK_K, in order, in fp32, as the tensor
cores add them: nothing is split, so a row's result depends neither on the tiles nor on the rows
beside it. It is rounded once, after SiLU·mul where that stands behind the product.

A program takes one tile of the list (`sorting.Order`): pairs of one expert. Unsorted, every pair is
a tile of its own. Gate and up rows of a column are taken by one program.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from quire.kernels.experts import tiles as tiling
from quire.kernels.experts.sorting import Order
from quire.kernels.experts.tiles import Tile


@triton.jit
def rows_of(
    experts_ptr, pairs_ptr, tiles_ptr, tile, most_tiles, BLOCK_M: tl.constexpr,
    SORTED: tl.constexpr,
):  # fmt: skip
    """One tile's expert, the places of its rows, the pairs that stand there, and which are real:
    those behind repeat the first."""
    lane = tl.arange(0, BLOCK_M)
    if SORTED:
        expert = tl.load(tiles_ptr + tile).to(tl.int64)
        begin = tl.load(tiles_ptr + most_tiles + tile)
        end = tl.load(tiles_ptr + 2 * most_tiles + tile)
        real = begin + lane < end
        at = tl.where(real, begin + lane, begin)
        pair = tl.load(pairs_ptr + at, mask=begin < end, other=0)
    else:
        expert = tl.load(experts_ptr + tile)
        real = lane < 1
        at = tile + lane * 0
        pair = at
    return expert, at, pair, real


@triton.jit
def _weights(w_ptr, w_box, line, start, k, K, EVEN_K: tl.constexpr, BOXED: tl.constexpr):
    """Columns start + k of an expert's lines: [BLOCK_N, BLOCK_K]. line: [BLOCK_N], rows of the
    weight; where BOXED the first of them."""
    if BOXED:
        w = w_box.load([line, start])
    elif EVEN_K:
        w = tl.load(w_ptr + line[:, None] * K + (start + k)[None, :])
    else:
        at = w_ptr + line[:, None] * K + (start + k)[None, :]
        w = tl.load(at, mask=(start + k < K)[None, :], other=0.0)
    return w


@triton.jit
def _add(acc, x, w, SWAP: tl.constexpr):
    """acc + x . w^T, transposed with SWAP."""
    if SWAP:
        acc = tl.dot(w, x.T, acc, input_precision="ieee")
    else:
        acc = tl.dot(x, w.T, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=["most_tiles"])
def _grouped_kernel(
    x_ptr,  # [T, K] with SILU, else [P, K]
    w_ptr,  # [E, N, K]; with SILU [E, 2 * N, K], gate rows then up rows
    w_box,  # a descriptor of the same as [lines, K], read where BOXED in place of w_ptr
    out_ptr,  # [P, N]: with SILU by place, else by pair
    experts_ptr,  # [P] int64, read unless SORTED
    pairs_ptr,  # [P] int32, read if SORTED
    tiles_ptr,  # [3, most_tiles] int32, read if SORTED
    most_tiles,
    N,
    K,
    PER_TOKEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SILU: tl.constexpr,
    SORTED: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN_K: tl.constexpr,
    BOXED: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(N / BLOCK_N) * most_tiles,): programs of one tile stand together."""
    blocks = tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * BLOCK_N
    n = first + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    expert, at, pair, real = rows_of(
        experts_ptr, pairs_ptr, tiles_ptr, tile, most_tiles, BLOCK_M, SORTED
    )
    if tl.sum(real.to(tl.int32), 0) > 0:
        row = pair // PER_TOKEN if SILU else at
        at_x = x_ptr + row.to(tl.int64)[:, None] * K + k[None, :]
        # Columns past the end read other lines: what they give is never stored.
        line = expert * (2 * N if SILU else N)
        if BOXED:
            line = (line + first).to(tl.int32)
        else:
            line = line + tl.minimum(n, N - 1)
        acc = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
        up = acc
        for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
            if EVEN_K:
                x = tl.load(at_x + start)
            else:
                x = tl.load(at_x + start, mask=(start + k < K)[None, :], other=0.0)
            acc = _add(acc, x, _weights(w_ptr, w_box, line, start, k, K, EVEN_K, BOXED), SWAP)
            if SILU:
                w = _weights(w_ptr, w_box, line + N, start, k, K, EVEN_K, BOXED)
                up = _add(up, x, w, SWAP)
        if SILU:
            acc = acc / (1.0 + tl.exp(-acc)) * up
        if SWAP:
            acc = acc.T
        to = (at if SILU else pair).to(tl.int64)
        tl.store(
            out_ptr + to[:, None] * N + n[None, :],
            acc.to(out_ptr.dtype.element_ty),
            mask=real[:, None] & (n < N)[None, :],
        )


def grouped(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    experts: Tensor,
    order: Order | None,
    tile: Tile,
    block_m: int,
    *,
    silu: bool,
    pdl: bool = False,
) -> None:
    """out = x times each pair's expert. experts: [T, per_token]; order: None for unsorted pairs.

    silu: x is [T, K], the weight [E, 2 * N, K], and out [P, N] has silu(gate) * up at each pair's
    place in the order. Otherwise x is [P, K] in that order, the weight [E, N, K], and out [P, N] in
    the order of the pairs' numbers.
    """
    pairs, columns = out.shape
    width = weight.shape[2]
    boxed = tile.boxed and width * weight.element_size() % 16 == 0
    most = pairs
    if order is not None:
        most = tiling.most_tiles(pairs, weight.shape[0], block_m)
    _grouped_kernel[(triton.cdiv(columns, tile.block_n) * most,)](
        x,
        weight,
        box(weight, tile) if boxed else None,
        out,
        experts,
        experts if order is None else order.pairs,
        experts if order is None else order.tiles,
        most,
        columns,
        width,
        PER_TOKEN=experts.shape[1],
        BLOCK_M=block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        SILU=silu,
        SORTED=order is not None,
        SWAP=tile.swap,
        EVEN_K=width % tile.block_k == 0,
        BOXED=boxed,
        STAGES=tile.stages,
        PDL=pdl,
        num_warps=tile.warps,
        launch_pdl=pdl,
    )


def box(weight: Tensor, tile: Tile) -> TensorDescriptor:
    """A descriptor of all experts' lines, read block_n lines and block_k columns at a time."""
    *_, width = weight.shape
    lines = weight.numel() // width
    return TensorDescriptor(weight, [lines, width], [width, 1], [tile.block_n, tile.block_k])
