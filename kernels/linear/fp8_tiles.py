"""Products of FP8 weights on tensor cores, for any number of rows that are quantized already.

Invariant: `out[m, n]` is summed over K in blocks of 128, in order, within each of SPLIT equal
shares of K: a block's 128 products in the tensor core, times the two scales of the block, then
added in fp32. The shares are added in index order, by the last program to arrive at a tile, or by
one that sums them in turn. So a row's result depends on the number of shares and the instruction
alone, never on the rows beside it.

Between launches every counter is zero: the last arriver of a tile puts it back.

Around the product: SiLU·mul and the residual after it.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.linear.skinny import MAX_TILES, new_counters
from quire.kernels.weight import Quantized, Weight

_TILES_HIGH = 8  # tiles of rows that are computed side by side, so that they share weights in L2


@triton.jit
def _place(COLUMNS, M, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HIGH: tl.constexpr):
    """The tile of this program: (of columns, of rows). Columns change fastest but within groups of
    HIGH tiles of rows, where rows do."""
    pid = tl.program_id(0)
    wide = tl.cdiv(COLUMNS, BLOCK_N)
    tall = tl.cdiv(M, BLOCK_M)
    group = pid // (HIGH * wide)
    high = tl.minimum(tall - group * HIGH, HIGH)
    inside = pid % (HIGH * wide)
    return inside // high, group * HIGH + inside % high


@triton.jit
def _add_block(acc, at_w, x, x_scale, w_scale, k, K, EVEN_K: tl.constexpr, SWAP: tl.constexpr):
    """acc + the product of one block of 128 columns, scaled. at_w: [BLOCK_N, 128] pointers."""
    if EVEN_K:
        w = tl.load(at_w)
    else:
        w = tl.load(at_w, mask=(k < K)[None, :], other=0.0)
    if SWAP:
        acc += tl.dot(w, x.T) * (x_scale * w_scale)[None, :]
    else:
        acc += tl.dot(x, w.T) * (x_scale * w_scale)[:, None]
    return acc


@triton.jit
def _sum_shares(partial_ptr, at, size, mask, SPLIT: tl.constexpr):
    """The shares of K at a tile, added in order."""
    total = tl.load(partial_ptr + at, mask=mask, other=0.0, cache_modifier=".cg")
    for share in tl.static_range(1, SPLIT):
        total += tl.load(
            partial_ptr + share * size + at, mask=mask, other=0.0, cache_modifier=".cg"
        )
    return total


@triton.jit
def _store(out_ptr, residual_ptr, y, m, n, M, COLUMNS, RESIDUAL: tl.constexpr):
    """y: [BLOCK_M, BLOCK_N] fp32, to its place, with the residual."""
    mask = (m < M)[:, None] & (n < COLUMNS)[None, :]
    at = m.to(tl.int64)[:, None] * COLUMNS + n[None, :]
    if RESIDUAL:
        y += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M", "x_scale_row", "x_scale_group"])
def _fp8_tile_kernel(
    x_ptr,  # [M, K] e4m3
    xs_ptr,  # [M, GROUPS] fp32, by its strides
    x_scale_row,
    x_scale_group,
    w_ptr,  # [COLUMNS, K] e4m3; with SILU [2 * COLUMNS, K], gate rows then up rows
    ws_ptr,  # [ceil(rows of w / 128), GROUPS] fp32
    out_ptr,  # [M, COLUMNS]
    residual_ptr,  # [M, COLUMNS], read if RESIDUAL; may be out_ptr
    partial_ptr,  # [SPLIT, M, COLUMNS] fp32 (with SILU twice: gates, then ups), if SPLIT > 1
    counter_ptr,  # [>= programs of one share] int32, zeros, used if SPLIT > 1
    M,
    COLUMNS,
    K,
    GROUPS,  # ceil(K / 128)
    SHARE,  # blocks of K in a share: ceil(GROUPS / shares)
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # columns of a tile, a divisor of 128
    HIGH: tl.constexpr,
    SPLIT: tl.constexpr,  # shares, a program each
    TURNS: tl.constexpr,  # shares that a program sums one after another, without SILU
    SWAP: tl.constexpr,  # weights are the M side of the instruction
    STAGES: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SILU: tl.constexpr,
    EVEN_K: tl.constexpr,  # K = 128 * GROUPS
    PDL: tl.constexpr,
):
    """grid (tiles of columns * tiles of rows, SPLIT)."""
    tile, row_tile = _place(COLUMNS, M, BLOCK_M, BLOCK_N, HIGH)
    m = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, 128)
    begin = tl.minimum(tl.program_id(1) * SHARE, GROUPS - 1)
    steps = tl.minimum(SHARE * TURNS, GROUPS - tl.program_id(1) * SHARE)
    # Rows past an end read the last row: what they give is never stored.
    in_x = tl.minimum(m, M - 1).to(tl.int64)
    in_w = tl.minimum(n, COLUMNS - 1).to(tl.int64)
    at_x = x_ptr + in_x[:, None] * K + (begin * 128 + k)[None, :]
    at_xs = xs_ptr + in_x * x_scale_row + begin * x_scale_group
    at_w = w_ptr + in_w[:, None] * K + (begin * 128 + k)[None, :]
    at_ws = ws_ptr + tile * BLOCK_N // 128 * GROUPS + begin
    at_up = at_w
    at_us = at_ws
    if SILU:
        at_up = at_w + COLUMNS.to(tl.int64) * K
        at_us = at_ws + COLUMNS // 128 * GROUPS
    if SWAP:
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = acc
    earlier = acc
    # A block's scales are read while the block before it is computed: what does not feed a dot is
    # not fetched ahead by the compiler.
    last = tl.maximum(steps - 1, 0)
    w_scale = tl.load(at_ws)
    u_scale = w_scale
    if SILU:
        u_scale = tl.load(at_us)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    x_scale = tl.load(at_xs)
    for step in tl.range(0, steps, num_stages=STAGES):
        at = step * 128
        column = (begin + step) * 128 + k
        if EVEN_K:
            x = tl.load(at_x + at)
        else:
            x = tl.load(at_x + at, mask=(column < K)[None, :], other=0.0)
        ahead = tl.minimum(step + 1, last)
        x_next = tl.load(at_xs + ahead * x_scale_group)
        w_next = tl.load(at_ws + ahead)
        acc = _add_block(acc, at_w + at, x, x_scale, w_scale, column, K, EVEN_K, SWAP)
        if SILU:
            u_next = tl.load(at_us + ahead)
            up = _add_block(up, at_up + at, x, x_scale, u_scale, column, K, EVEN_K, SWAP)
            u_scale = u_next
        x_scale = x_next
        w_scale = w_next
        if TURNS > 1:  # noqa: SIM102 (told when compiled, and only then)
            if (step + 1) % SHARE == 0:
                earlier += acc
                acc = tl.zeros_like(acc)
    if TURNS > 1:
        acc = earlier + acc  # of a last share that is shorter
    if SWAP:
        acc = acc.T
        up = up.T
    if SPLIT == 1:
        if SILU:
            acc = acc / (1.0 + tl.exp(-acc)) * up
        _store(out_ptr, residual_ptr, acc, m, n, M, COLUMNS, RESIDUAL)
    else:
        mask = (m < M)[:, None] & (n < COLUMNS)[None, :]
        at = m.to(tl.int64)[:, None] * COLUMNS + n[None, :]
        size = COLUMNS.to(tl.int64) * M
        tl.store(partial_ptr + tl.program_id(1) * size + at, acc, mask=mask)
        if SILU:
            tl.store(partial_ptr + (SPLIT + tl.program_id(1)) * size + at, up, mask=mask)
        tl.debug_barrier()
        counter = counter_ptr + tl.program_id(0)
        if tl.atomic_add(counter, 1, sem="acq_rel") == SPLIT - 1:
            total = _sum_shares(partial_ptr, at, size, mask, SPLIT)
            if SILU:
                up = _sum_shares(partial_ptr + SPLIT * size, at, size, mask, SPLIT)
                total = total / (1.0 + tl.exp(-total)) * up
            _store(out_ptr, residual_ptr, total, m, n, M, COLUMNS, RESIDUAL)
            tl.store(counter, 0)


def tiles(
    x: Quantized,
    weight: Weight,
    out: Tensor,
    *,
    block_m: int,
    block_n: int,
    split: int = 1,
    in_turn: bool = False,
    swap: bool = True,
    stages: int = 4,
    warps: int = 4,
    residual: Tensor | None = None,
    silu: bool = False,
    counters: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """out = x @ weight.T, with what `linear_fp8` may put around it. x: [M, K], any M.

    The block sizes, split, stages and warps are the variant's; block_n divides 128. out may be
    residual. in_turn: a program sums all shares, one after another; not with silu. counters: as
    made by `skinny.new_counters`; split products without them make some. Raises ValueError where
    they are fewer than the tiles.
    """
    assert weight.scale is not None
    rows, width = x.data.shape
    columns, groups = out.shape[1], weight.scale.shape[1]
    programs = triton.cdiv(columns, block_n) * triton.cdiv(rows, block_m)
    partial: Tensor = out
    turns, beside = (split, 1) if in_turn else (1, split)
    if beside > 1:
        counters = new_counters(out.device) if counters is None else counters
        if programs > MAX_TILES:
            raise ValueError(f"{programs} tiles exceed the {MAX_TILES} of split products")
        shares = 2 * split if silu else split
        partial = torch.empty(shares, rows, columns, dtype=torch.float32, device=out.device)
    _fp8_tile_kernel[(programs, beside)](
        x.data,
        x.scale,
        *x.scale.stride(),
        weight.data,
        weight.scale,
        out,
        out if residual is None else residual,
        partial,
        x.data if counters is None else counters,
        rows,
        columns,
        width,
        groups,
        triton.cdiv(groups, split),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        HIGH=_TILES_HIGH,
        SPLIT=beside,
        TURNS=turns,
        SWAP=swap,
        STAGES=stages,
        RESIDUAL=residual is not None,
        SILU=silu,
        EVEN_K=width == 128 * groups,
        PDL=pdl,
        num_warps=warps,
        launch_pdl=pdl,
    )
