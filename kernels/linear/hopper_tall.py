"""Products of many rows for sm_90: a warp loads while groups of four warps multiply.

Invariant: the order of sums of tall.py's kernel, and its bits: within a share of K in order by the
matrix units, in fp32, shares in index order, and a residual added to what has been rounded to x's
dtype. tall.py's kernel is the twin to compare with; `tall_launch` says which products come here.

In Gluon, the level below Triton. A multiprocessor has one program, which goes from tile to tile of
GROUPS x 64 rows by 128 columns: the loader is at the next tile's steps of K while the groups write
the last. With SiLU a tile is of gates and of ups, and its end is silu(gate) * up of both, rounded
first as where they are stored between two kernels. Who owns a place in shared memory:

    a step of K    the loader, until its barrier in `full`; then the groups, until all have arrived
                   at `empty`
    a result       the loader where there is a residual, which it puts there, until `held`; then its
                   group, and the copy to memory, until `left`

Source: CUTLASS's cooperative kernels with specialised warps.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels import support
from quire.kernels.gluon_boxes import box
from quire.kernels.linear.tall_launch import COLUMNS, GROUP_ROWS, STEP

ROWS = gl.constexpr(GROUP_ROWS)
WIDE = gl.constexpr(COLUMNS)
DEEP = gl.constexpr(STEP)
TOGETHER = gl.constexpr(16)  # tiles of rows that follow one another, as they read the same weights
_STAGES = {1: 8, 2: 6, 3: 4}  # steps of K in shared memory, by groups
_SILU_STAGES = {2: 4, 3: 3}
_LOADER = gl.constexpr(24)  # registers a thread, the least there is
_REGISTERS = {1: (168, 256), 2: (168, 240), 3: (128, 160)}  # at the start, and of a group's threads


@gluon.jit
def _corner(tile, M, N, GROUPS: gl.constexpr):
    high = gl.cdiv(M, ROWS * GROUPS)
    together = TOGETHER * gl.cdiv(N, WIDE)
    first = tile // together * TOGETHER
    rows = gl.minimum(high - first, TOGETHER)
    place = tile % together
    return (first + place % rows) * ROWS * GROUPS, place // rows * WIDE


@gluon.jit
def _load(
    boxes, rings, bars, sizes, GROUPS: gl.constexpr, RESIDUAL: gl.constexpr, SILU: gl.constexpr
):
    """All steps of all tiles, each as soon as its place is empty; a residual among them."""
    x_box, w_box, before_box = boxes
    x_ring, w_ring, results = rings
    full, empty, held, left = bars
    M, N, steps, _share, tiles = sizes
    STAGES: gl.constexpr = full.shape[0]
    step = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        m, n = _corner(tile, M, N, GROUPS)
        turn = step // steps
        for k in range(steps):
            place = step % STAGES
            mbarrier.wait(empty.index(place), ((step // STAGES) & 1) ^ 1)
            bar = full.index(place)
            mbarrier.expect(bar, (ROWS * GROUPS + (2 * WIDE if SILU else WIDE)) * DEEP * 2)
            for i in gl.static_range(GROUPS):
                x = x_ring.index(place * GROUPS + i)
                tma.async_copy_global_to_shared(x_box, [m + i * ROWS, k * DEEP], bar, x)
            if SILU:
                gate, up = w_ring.index(2 * place), w_ring.index(2 * place + 1)
                tma.async_copy_global_to_shared(w_box, [n, k * DEEP], bar, gate)
                tma.async_copy_global_to_shared(w_box, [N + n, k * DEEP], bar, up)
            else:
                tma.async_copy_global_to_shared(w_box, [n, k * DEEP], bar, w_ring.index(place))
            if RESIDUAL:  # noqa: SIM102 (told when compiled, and only then)
                if k == steps // 2:
                    mbarrier.wait(left, (turn & 1) ^ 1)
                    mbarrier.expect(held, ROWS * GROUPS * WIDE * 2)
                    for i in gl.static_range(GROUPS):
                        at = [m + i * ROWS, n]
                        tma.async_copy_global_to_shared(before_box, at, held, results.index(i))
            step += 1


@gluon.jit
def _multiply(rings, bars, step, steps, ME: gl.constexpr, GROUPS: gl.constexpr, SILU: gl.constexpr):
    """The sum of `steps` steps of K, from `step` on of all; with SILU those of gate and up."""
    x_ring, w_ring, _results = rings
    full, empty, _held, _left = bars
    STAGES: gl.constexpr = full.shape[0]
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDE, 16])
    acc = gl.zeros([ROWS, WIDE], gl.float32, layout=LAYOUT)
    up = gl.zeros([ROWS, WIDE], gl.float32, layout=LAYOUT)
    for k in range(steps):
        place = step % STAGES
        mbarrier.wait(full.index(place), (step // STAGES) & 1)
        x = x_ring.index(place * GROUPS + ME)
        if SILU:
            w = w_ring.index(2 * place).permute((1, 0))
            acc = warpgroup_mma(x, w, acc, use_acc=k > 0, is_async=True)
            w = w_ring.index(2 * place + 1).permute((1, 0))
            up = warpgroup_mma(x, w, up, use_acc=k > 0, is_async=True)
            acc, up = warpgroup_mma_wait(2, deps=[acc, up])
        else:
            w = w_ring.index(place).permute((1, 0))
            acc = warpgroup_mma(x, w, acc, use_acc=k > 0, is_async=True)
            acc = warpgroup_mma_wait(1, deps=[acc])
        # Of the step before all has been read.
        mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES), count=1, pred=k > 0)
        step += 1
    if SILU:
        acc, up = warpgroup_mma_wait(0, deps=[acc, up])
    else:
        acc = warpgroup_mma_wait(0, deps=[acc])
    mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES), count=1)
    return acc, up


@gluon.jit
def _sum(
    out_box, rings, bars, sizes, ME: gl.constexpr, GROUPS: gl.constexpr, SEVERAL: gl.constexpr,
    RESIDUAL: gl.constexpr, SILU: gl.constexpr,
):  # fmt: skip
    """A group's rows of all tiles. ME: which group."""
    _x_ring, _w_ring, results = rings
    _full, _empty, held, left = bars
    M, N, steps, share, tiles = sizes
    DTYPE: gl.constexpr = results.dtype
    result = results.index(ME)
    step = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        m, n = _corner(tile, M, N, GROUPS)
        turn = step // steps
        total, up = _multiply(rings, bars, step, share, ME, GROUPS, SILU)
        step += share
        if SEVERAL:
            for _ in range(share, steps, share):
                part, up = _multiply(rings, bars, step, share, ME, GROUPS, SILU)
                total += part
                step += share
        if SILU:
            gate = total.to(DTYPE).to(gl.float32)
            total = gate / (1.0 + gl.exp(-gate)) * up.to(DTYPE).to(gl.float32)
        if RESIDUAL:
            mbarrier.wait(held, turn & 1)
            before = result.load(total.type.layout).to(gl.float32)
            total = total.to(DTYPE).to(gl.float32) + before
        else:
            tma.store_wait(0)
        result.store(total.to(DTYPE))
        fence_async_shared()
        tma.async_copy_shared_to_global(out_box, [m + ME * ROWS, n], result)
        if RESIDUAL:
            tma.store_wait(0)
            mbarrier.arrive(left, count=1)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["M", "N", "steps", "share", "tiles"])
def _hopper_tall_kernel(
    x_box, w_box, before_box, out_box, M, N, steps, share, tiles,
    GROUPS: gl.constexpr, STAGES: gl.constexpr, SEVERAL: gl.constexpr, RESIDUAL: gl.constexpr,
    SILU: gl.constexpr, REGISTERS: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """grid (programs,). steps: of K, `share` of them a share."""
    x_ring = gl.allocate_shared_memory(x_box.dtype, [STAGES * GROUPS, ROWS, DEEP], x_box.layout)
    w_ring = gl.allocate_shared_memory(
        x_box.dtype, [STAGES * (2 if SILU else 1), WIDE, DEEP], w_box.layout
    )
    results = gl.allocate_shared_memory(x_box.dtype, [GROUPS, ROWS, WIDE], out_box.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    held = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    left = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=GROUPS)
    mbarrier.init(held, count=1)
    mbarrier.init(left, count=GROUPS)
    fence_async_shared()
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    boxes = (x_box, w_box, before_box)
    rings = (x_ring, w_ring, results)
    bars = (full, empty, held, left)
    sizes = (M, N, steps, share, tiles)
    FIRST: gl.constexpr = 0
    SECOND: gl.constexpr = 1
    THIRD: gl.constexpr = 2
    if GROUPS == 1:
        gl.warp_specialize([
            (_sum, (out_box, rings, bars, sizes, FIRST, GROUPS, SEVERAL, RESIDUAL, SILU)),
            (_load, (boxes, rings, bars, sizes, GROUPS, RESIDUAL, SILU)),
        ], [1], [_LOADER])  # fmt: skip
    elif GROUPS == 2:
        gl.warp_specialize([
            (_sum, (out_box, rings, bars, sizes, FIRST, GROUPS, SEVERAL, RESIDUAL, SILU)),
            (_sum, (out_box, rings, bars, sizes, SECOND, GROUPS, SEVERAL, RESIDUAL, SILU)),
            (_load, (boxes, rings, bars, sizes, GROUPS, RESIDUAL, SILU)),
        ], [4, 1], [REGISTERS, _LOADER])  # fmt: skip
    else:
        gl.warp_specialize([
            (_sum, (out_box, rings, bars, sizes, FIRST, GROUPS, SEVERAL, RESIDUAL, SILU)),
            (_sum, (out_box, rings, bars, sizes, SECOND, GROUPS, SEVERAL, RESIDUAL, SILU)),
            (_sum, (out_box, rings, bars, sizes, THIRD, GROUPS, SEVERAL, RESIDUAL, SILU)),
            (_load, (boxes, rings, bars, sizes, GROUPS, RESIDUAL, SILU)),
        ], [4, 4, 1], [REGISTERS, REGISTERS, _LOADER])  # fmt: skip


def tall(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    groups: int,
    *,
    split: int = 1,
    residual: Tensor | None = None,
    silu: bool = False,
    pdl: bool = False,
) -> None:
    """out = x @ weight.T (+ residual), or silu(gate) * up of it. x: [M, K] contiguous, K of whole
    steps in each of `split` shares; weight: [N, K], with silu gate and up rows; out may be
    residual. groups: of 64 rows a tile."""
    (rows, width), columns = x.shape, out.shape[1]
    tiles = triton.cdiv(rows, GROUP_ROWS * groups) * triton.cdiv(columns, COLUMNS)
    first, registers = _REGISTERS[groups]
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    _hopper_tall_kernel[(min(tiles, support.multiprocessors(x.device)),)](
        _box(x, GROUP_ROWS, STEP), _box(weight, COLUMNS, STEP),
        _box(out if residual is None else residual, GROUP_ROWS, COLUMNS),
        _box(out, GROUP_ROWS, COLUMNS), rows, columns, width // STEP, width // STEP // split, tiles,
        GROUPS=groups, STAGES=(_SILU_STAGES if silu else _STAGES)[groups], SEVERAL=split > 1,
        RESIDUAL=residual is not None, SILU=silu, REGISTERS=registers, PDL=pdl,
        num_warps=4, maxnreg=first, **options,
    )  # fmt: skip


def _box(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A descriptor of a contiguous matrix, copied so many rows and columns at a time."""
    return box(matrix, list(matrix.shape), [rows, columns])
