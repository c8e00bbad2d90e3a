"""Products for up to a hundred rows or so, on tensor cores, bound by reading the weight.

Invariant: `out[m, n]` is summed over K in steps of BLOCK_K, in order, within each of SPLIT equal
shares of K; the shares are then added in index order by the last program to arrive at a tile. So
the order of the reduction depends on (BLOCK_K, SPLIT) and the instruction alone, never on which
program came first. Tables give one weight shape several (BLOCK_K, SPLIT, SWAP) by number of rows:
across those buckets results agree to rounding, not bit for bit.

Between launches every counter is zero: the last arriver of a tile puts it back.

Around the product: RMSNorm of x before it (with SPLIT = 1), SiLU·mul and the residual after it.
With NORM, x is scaled by the norm's weight and rounded to x's dtype; the row's 1/rms multiplies the
sum afterwards.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

MAX_TILES = 65_536  # counters a workspace must hold
MAX_TILES_A_PROGRAM = 3


@triton.jit
def _prefetch(ptr):
    """Ask L2 for the line of each pointer. Nothing waits for it."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [ptr],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _epilogue(
    out_ptr, residual_ptr, acc, m, tile, M, COLUMNS, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    RESIDUAL: tl.constexpr, SILU: tl.constexpr, APART: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """acc: [BLOCK_M, BLOCK_N] fp32. SiLU·mul, residual, store. TYPE: that gate and up are rounded
    to, as where they are stored between two kernels; with APART what a residual joins, too."""
    if SILU:
        acc = acc.to(TYPE).to(tl.float32)
        gate, up = acc.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1).split()
        y = gate / (1.0 + tl.exp(-gate)) * up
        n = tile * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    else:
        y = acc
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (m < M)[:, None] & (n < COLUMNS)[None, :]
    at = m.to(tl.int64)[:, None] * COLUMNS + n[None, :]
    if RESIDUAL:
        if APART:
            y = y.to(TYPE).to(tl.float32)
        y += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _weight_rows(w_ptr, tile, COLUMNS, K, BLOCK_N: tl.constexpr, SILU: tl.constexpr):
    """Where each weight row of a tile begins: [BLOCK_N]. With SILU the tile's first half holds gate
    rows, its second half the matching up rows."""
    lane = tl.arange(0, BLOCK_N)
    if SILU:
        HALF: tl.constexpr = BLOCK_N // 2
        column = tile * HALF + lane % HALF
        n = tl.where(lane < HALF, column, COLUMNS + column)
    else:
        column = tile * BLOCK_N + lane
        n = column
    # Rows past the end read the last row: what they give is never stored.
    return w_ptr + tl.where(column < COLUMNS, n, COLUMNS - 1).to(tl.int64) * K


@triton.jit
def _add_product(acc, rows, x, k, K, EVEN_K: tl.constexpr, SWAP: tl.constexpr):
    """acc + x . w^T for the columns k of the weight rows at `rows`."""
    at = rows[:, None] + k[None, :]
    if EVEN_K:
        w = tl.load(at)
    else:
        w = tl.load(at, mask=(k < K)[None, :], other=0.0)
    if SWAP:
        acc = tl.dot(w, x.T, acc, input_precision="ieee")
    else:
        acc = tl.dot(x, w.T, acc, input_precision="ieee")
    return acc


@triton.jit
def _store_part(
    acc, scale, out_ptr, residual_ptr, partial_ptr, m, tile, M, COLUMNS, width,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, SWAP: tl.constexpr,
    RESIDUAL: tl.constexpr, SILU: tl.constexpr, APART: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """One tile's sum: to the output, or with SPLIT to this share's partial results [M, width]."""
    if SWAP:
        acc = acc.T
    if SPLIT == 1:
        acc = acc * scale[:, None]
        _epilogue(
            out_ptr, residual_ptr, acc, m, tile, M, COLUMNS, BLOCK_M, BLOCK_N, RESIDUAL, SILU,
            APART, TYPE,
        )  # fmt: skip
    else:
        at = m.to(tl.int64)[:, None] * width + (tile * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
        tl.store(partial_ptr + at, acc, mask=(m < M)[:, None])


@triton.jit
def _add_shares(
    out_ptr, residual_ptr, partial_ptr, m, tile, M, COLUMNS, width, size,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, RESIDUAL: tl.constexpr,
    SILU: tl.constexpr, APART: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """One tile's shares of K, added in index order."""
    at = m.to(tl.int64)[:, None] * width + (tile * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for s in tl.static_range(SPLIT):
        total += tl.load(
            partial_ptr + s * size + at, mask=(m < M)[:, None], other=0.0, cache_modifier=".cg"
        )
    _epilogue(
        out_ptr, residual_ptr, total, m, tile, M, COLUMNS, BLOCK_M, BLOCK_N, RESIDUAL, SILU, APART,
        TYPE,
    )  # fmt: skip


@triton.jit(do_not_specialize=["M"])
def _skinny_kernel(
    x_ptr,  # [M, K]
    w_ptr,  # [COLUMNS, K]; with SILU [2 * COLUMNS, K]
    out_ptr,  # [M, COLUMNS]
    residual_ptr,  # [M, COLUMNS], read if RESIDUAL; may be out_ptr
    norm_ptr,  # [K], read if NORM
    partial_ptr,  # [SPLIT, M, tiles * BLOCK_N] fp32, used if SPLIT > 1
    counter_ptr,  # [>= programs of one share] int32, zeros, used if SPLIT > 1
    M,
    COLUMNS,
    K,
    K_SHARE,  # K / SPLIT, rounded up to a multiple of BLOCK_K: the last share may be shorter
    eps,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # weight rows a tile (gate and up rows together)
    BLOCK_K: tl.constexpr,
    TILES: tl.constexpr,  # of a program, 1 to 3
    SPLIT: tl.constexpr,
    SWAP: tl.constexpr,  # weights are the M side of the instruction (BLOCK_N >= 64: wgmma)
    STAGES: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SILU: tl.constexpr,
    APART: tl.constexpr,
    EVEN_K: tl.constexpr,  # K is whole steps
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(tiles of weight rows / TILES), ceil(M / BLOCK_M), SPLIT)."""
    tile = tl.program_id(0) * TILES
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    share = tl.program_id(2)
    begin = share * K_SHARE
    end = tl.minimum(K_SHARE, K - begin)
    k = begin + tl.arange(0, BLOCK_K)
    rows = _weight_rows(w_ptr, tile, COLUMNS, K, BLOCK_N, SILU)
    # Tuples would say it shorter; not every Triton carries them through a loop.
    rows_1 = _weight_rows(w_ptr, tile + 1, COLUMNS, K, BLOCK_N, SILU)
    rows_2 = _weight_rows(w_ptr, tile + 2, COLUMNS, K, BLOCK_N, SILU)
    if PDL:
        gdc_launch_dependents()
        if PREFETCH:
            LINE: tl.constexpr = 128 * 8 // w_ptr.dtype.element_ty.primitive_bitwidth
            line = tl.arange(0, BLOCK_K // LINE) * LINE
            for start in range(0, end, BLOCK_K):
                _prefetch(rows[:, None] + (begin + start + line)[None, :])
        gdc_wait()
    in_m = (m < M)[:, None]
    at_x = x_ptr + m.to(tl.int64)[:, None] * K + k[None, :]
    if SWAP:
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc_1 = acc
    acc_2 = acc
    squares = tl.zeros((BLOCK_M,), tl.float32)
    for start in tl.range(0, end, BLOCK_K, num_stages=STAGES):
        if EVEN_K:
            x = tl.load(at_x + start, mask=in_m, other=0.0)
        else:
            x = tl.load(at_x + start, mask=in_m & (start + k < K)[None, :], other=0.0)
        if NORM:
            if EVEN_K:
                norm = tl.load(norm_ptr + start + k)
            else:
                norm = tl.load(norm_ptr + start + k, mask=start + k < K, other=0.0)
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, 1)
            x = (wide * norm.to(tl.float32)[None, :]).to(x.dtype)
        acc = _add_product(acc, rows, x, start + k, K, EVEN_K, SWAP)
        if TILES > 1:
            acc_1 = _add_product(acc_1, rows_1, x, start + k, K, EVEN_K, SWAP)
        if TILES > 2:
            acc_2 = _add_product(acc_2, rows_2, x, start + k, K, EVEN_K, SWAP)
    TYPE: tl.constexpr = x_ptr.dtype.element_ty
    scale = tl.full((BLOCK_M,), 1.0, tl.float32)
    if NORM:
        scale = 1.0 / tl.sqrt(squares / K + eps)
    width = tl.num_programs(0) * TILES * BLOCK_N
    size = width.to(tl.int64) * M
    partial = partial_ptr + share * size
    _store_part(
        acc, scale, out_ptr, residual_ptr, partial, m, tile, M, COLUMNS, width, BLOCK_M, BLOCK_N,
        SPLIT, SWAP, RESIDUAL, SILU, APART, TYPE,
    )  # fmt: skip
    if TILES > 1:
        _store_part(
            acc_1, scale, out_ptr, residual_ptr, partial, m, tile + 1, M, COLUMNS, width, BLOCK_M,
            BLOCK_N, SPLIT, SWAP, RESIDUAL, SILU, APART, TYPE,
        )  # fmt: skip
    if TILES > 2:
        _store_part(
            acc_2, scale, out_ptr, residual_ptr, partial, m, tile + 2, M, COLUMNS, width, BLOCK_M,
            BLOCK_N, SPLIT, SWAP, RESIDUAL, SILU, APART, TYPE,
        )  # fmt: skip
    if SPLIT > 1:
        tl.debug_barrier()
        counter = counter_ptr + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        if tl.atomic_add(counter, 1, sem="acq_rel") == SPLIT - 1:
            for i in tl.static_range(TILES):
                _add_shares(
                    out_ptr, residual_ptr, partial_ptr, m, tile + i, M, COLUMNS, width, size,
                    BLOCK_M, BLOCK_N, SPLIT, RESIDUAL, SILU, APART, TYPE,
                )  # fmt: skip
            tl.store(counter, 0)


def new_counters(device: torch.device) -> Tensor:
    """The workspace of split products: [MAX_TILES] int32 zeros. One a stream."""
    return torch.zeros(MAX_TILES, dtype=torch.int32, device=device)


def room_of_shares(
    x: Tensor, grid: tuple[int, int, int], columns: int, counters: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Where the programs of a split product leave their sums, and what tells the last of them.

    grid: programs by weight rows, by rows and by shares; columns: that a program sums. Raises
    ValueError for more tiles than there are counters."""
    programs, high, split = grid
    if programs * high > MAX_TILES:
        raise ValueError(f"{programs * high} tiles exceed the {MAX_TILES} of split products")
    shape = (split, x.shape[0], programs * columns)
    partial = torch.empty(shape, dtype=torch.float32, device=x.device)
    return partial, new_counters(x.device) if counters is None else counters


def skinny(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    block_m: int,
    block_n: int,
    block_k: int,
    tiles: int,
    split: int,
    swap: bool,
    stages: int,
    warps: int,
    prefetch: bool,
    fuse_norm: bool,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    silu: bool = False,
    counters: Tensor | None = None,
    pdl: bool = False,
    apart: bool = False,
) -> None:
    """out = x @ weight.T, with what `linear` may put around it. x: [M, K], any M.

    The block sizes, tiles, split, stages and warps are the variant's. out may be residual.
    counters: as made by `new_counters`; split products without them make some. apart: what a
    residual is added to is rounded to x's dtype first. Raises ValueError for a norm that is not to
    be fused or with split > 1, or more than MAX_TILES_A_PROGRAM tiles.
    """
    rows, width = x.shape
    columns = out.shape[1]
    if not 1 <= tiles <= MAX_TILES_A_PROGRAM:
        raise ValueError(f"a program takes 1 to {MAX_TILES_A_PROGRAM} tiles, not {tiles}")
    if norm_weight is not None and not (fuse_norm and split == 1):
        raise ValueError(f"a norm needs fuse_norm and split 1, the variant has split {split}")
    programs = triton.cdiv(columns * (2 if silu else 1), block_n * tiles)
    grid = (programs, triton.cdiv(rows, block_m), split)
    partial: Tensor = out
    if split > 1:
        partial, counters = room_of_shares(x, grid, tiles * block_n, counters)
    share = triton.cdiv(triton.cdiv(width, split), block_k) * block_k
    _skinny_kernel[grid](
        x,
        weight,
        out,
        out if residual is None else residual,
        x if norm_weight is None else norm_weight,
        partial,
        x if counters is None else counters,
        rows,
        columns,
        width,
        share,
        eps,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        TILES=tiles,
        SPLIT=split,
        SWAP=swap,
        STAGES=stages,
        NORM=norm_weight is not None,
        RESIDUAL=residual is not None,
        SILU=silu,
        APART=apart,
        EVEN_K=width % block_k == 0,
        PREFETCH=prefetch and pdl,
        PDL=pdl,
        num_warps=warps,
        launch_pdl=pdl,
    )
