"""Products of some 33 to 64 rows by tiles of x and weights that come through descriptors (TMA).

Invariant: `out[m, n]` is summed as in skinny.py: in order within each of SPLIT shares of K, which
the last program to arrive at a tile adds in index order. Between launches every counter is zero.

At so many rows a program of skinny.py is bound by its own loads: each byte goes through a thread's
registers of addresses into shared memory. A descriptor's box needs one thread. sm_90 and newer.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from quire.kernels.linear.skinny import _add_shares, _store_part, room_of_shares


@triton.jit(do_not_specialize=["M"])
def _boxed_kernel(
    x_box,  # a descriptor of [M, K]
    w_box,  # and of [COLUMNS, K]; with SILU [2 * COLUMNS, K]
    out_ptr,  # [M, COLUMNS]
    residual_ptr,  # [M, COLUMNS], read if RESIDUAL; may be out_ptr
    partial_ptr,  # [SPLIT, M, tiles * BLOCK_N] fp32, used if SPLIT > 1
    counter_ptr,  # [>= programs of one share] int32, zeros, used if SPLIT > 1
    M,
    COLUMNS,
    K,
    K_SHARE,  # K / SPLIT, rounded up to a multiple of BLOCK_K: the last share may be shorter
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # weight rows a tile (gate and up rows together)
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SILU: tl.constexpr,
    APART: tl.constexpr,
    TYPE: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(weight rows / BLOCK_N), ceil(M / BLOCK_M), SPLIT). TYPE: that of x."""
    tile, share = tl.program_id(0), tl.program_id(2)
    at_m = tl.program_id(1) * BLOCK_M
    begin = share * K_SHARE
    end = tl.minimum(begin + K_SHARE, K)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    BOX: tl.constexpr = BLOCK_N // 2 if SILU else BLOCK_N
    acc = tl.zeros((BLOCK_M, BOX), tl.float32)
    up = tl.zeros((BLOCK_M, BOX), tl.float32)
    for k in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        x = x_box.load([at_m, k])
        w = w_box.load([tile * BOX, k])
        acc = tl.dot(x, w.T, acc, input_precision="ieee")
        if SILU:
            w_up = w_box.load([COLUMNS + tile * BOX, k])
            up = tl.dot(x, w_up.T, up, input_precision="ieee")
    if SILU:
        acc = tl.join(acc, up).permute(0, 2, 1).reshape(BLOCK_M, BLOCK_N)
    m = at_m + tl.arange(0, BLOCK_M)
    width = tl.num_programs(0) * BLOCK_N
    size = width.to(tl.int64) * M
    scale = tl.full((BLOCK_M,), 1.0, tl.float32)
    _store_part(
        acc, scale, out_ptr, residual_ptr, partial_ptr + share * size, m, tile, M, COLUMNS, width,
        BLOCK_M, BLOCK_N, SPLIT, False, RESIDUAL, SILU, APART, TYPE,
    )  # fmt: skip
    if SPLIT > 1:
        tl.debug_barrier()
        counter = counter_ptr + tl.program_id(1) * tl.num_programs(0) + tile
        if tl.atomic_add(counter, 1, sem="acq_rel") == SPLIT - 1:
            _add_shares(
                out_ptr, residual_ptr, partial_ptr, m, tile, M, COLUMNS, width, size, BLOCK_M,
                BLOCK_N, SPLIT, RESIDUAL, SILU, APART, TYPE,
            )  # fmt: skip
            tl.store(counter, 0)


def boxed(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    block_m: int,
    block_n: int,
    block_k: int,
    stages: int,
    warps: int,
    split: int,
    residual: Tensor | None = None,
    silu: bool = False,
    counters: Tensor | None = None,
    pdl: bool = False,
    apart: bool = False,
) -> None:
    """out = x @ weight.T, with what `linear` may put behind it. x: [M, K], any M; K: a multiple of
    8. counters, apart: of skinny.py. Raises ValueError for more tiles than there are counters."""
    (rows, width), columns = x.shape, out.shape[1]
    grid = (triton.cdiv(weight.shape[0], block_n), triton.cdiv(rows, block_m), split)
    partial: Tensor = out
    if split > 1:
        partial, counters = room_of_shares(x, grid, block_n, counters)
    box = block_n // 2 if silu else block_n
    _boxed_kernel[grid](
        TensorDescriptor(x, [rows, width], [width, 1], [block_m, block_k]),
        TensorDescriptor(weight, [weight.shape[0], width], [width, 1], [box, block_k]),
        out,
        out if residual is None else residual,
        partial,
        out if counters is None else counters,
        rows,
        columns,
        width,
        triton.cdiv(triton.cdiv(width, split), block_k) * block_k,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        SPLIT=split,
        STAGES=stages,
        RESIDUAL=residual is not None,
        SILU=silu,
        APART=apart,
        TYPE=tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float16,
        PDL=pdl,
        num_warps=warps,
        launch_pdl=pdl,
    )
