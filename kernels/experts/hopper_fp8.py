"""The products of experts with FP8 weights, of many rows, for sm_90: warps load, others multiply.

Invariant: the order of sums of products_fp8.py's kernel, and its bits: what the matrix units make
of 128 columns, times both its scales, is added in fp32, group after group. That kernel is the twin
to compare with; `mixing.mix_experts_fp8` says which products come here.

In Gluon, the level below Triton. A multiprocessor has one program, which goes from tile to tile of
one expert: 64 rows for each group of four warps, two groups and 128 columns of gates and of their
ups, or three and 128 columns of downs. While one group scales what it has, another multiplies. Rows
of gates and ups are gathered from where their tokens stand; those of downs stand in order. A step's
place in shared memory is the loaders', until its barrier in `full`; then the groups', until all
have arrived at `empty`, with rows or without.

Source: CUTLASS's cooperative kernels with specialised warps; DeepGEMM's scaled blocks.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from quire.kernels import support
from quire.kernels.experts import tiles
from quire.kernels.experts.sorting import Order
from quire.kernels.experts.tiles import GROUP_ROWS
from quire.kernels.gluon_boxes import box
from quire.kernels.weight import Quantized, Weight

ROWS = gl.constexpr(GROUP_ROWS)
WIDE = gl.constexpr(128)  # columns of a block
DEEP = gl.constexpr(128)  # of K, a step: those that share a scale
STAGES = gl.constexpr(4)  # steps in shared memory
_FIRST = {True: 168, False: 128}  # registers a thread before the warps part, by SiLU
_REGISTERS = {True: 240, False: 160}  # and then a group's
_LOADER = gl.constexpr(24)  # and a loader's, the least there is


@gluon.jit
def _tile(lists, item, BLOCKS: gl.constexpr):
    """An item of work's expert, and where its rows begin and end."""
    _pairs_ptr, tiles_ptr, most_tiles = lists
    at = tiles_ptr + item // BLOCKS
    return gl.load(at), gl.load(at + most_tiles), gl.load(at + 2 * most_tiles)


@gluon.jit
def _gathered(x_ptr, pairs_ptr, begin, end, PER_TOKEN: gl.constexpr, K: gl.constexpr):
    """Pointers to the first step of a group's rows, where the tokens have them; behind the last
    row to that one."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [4, 1], [1, 0])
    at = begin + gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    row = gl.load(pairs_ptr + gl.minimum(at, end - 1)) // PER_TOKEN
    column = gl.arange(0, DEEP, layout=gl.SliceLayout(0, LAYOUT))
    return x_ptr + ((row * K)[:, None] + column[None, :])


@gluon.jit
def _gather_step(boxes, rings, bar, first, second, line, k, place, both, N: gl.constexpr):
    """One step of gates and ups, and of the rows of two groups, of which the second may be none."""
    _x_box, w_box, _x_ptr = boxes
    x_ring, w_ring, _results = rings
    gate, up = w_ring.index(2 * place), w_ring.index(2 * place + 1)
    mbarrier.expect(bar, 2 * WIDE * DEEP)
    tma.async_copy_global_to_shared(w_box, [line, k], bar, gate)
    tma.async_copy_global_to_shared(w_box, [line + N, k], bar, up)
    async_copy.async_copy_global_to_shared(x_ring.index(2 * place), first + k)
    if both:
        async_copy.async_copy_global_to_shared(x_ring.index(2 * place + 1), second + k)
    async_copy.mbarrier_arrive(bar, increment_count=False)


@gluon.jit
def _copy_step(boxes, rings, bar, rows, begin, line, k, place, GROUPS: gl.constexpr):
    """One step of downs, and of the rows of all groups that have any."""
    x_box, w_box, _x_ptr = boxes
    x_ring, w_ring, _results = rings
    for i in gl.static_range(GROUPS):
        last = (i == GROUPS - 1) | (rows <= (i + 1) * ROWS)
        mbarrier.expect(bar, (WIDE + (i + 1) * ROWS) * DEEP, pred=last & (rows > i * ROWS))
    tma.async_copy_global_to_shared(w_box, [line, k], bar, w_ring.index(place))
    for i in gl.static_range(GROUPS):
        x = x_ring.index(GROUPS * place + i)
        tma.async_copy_global_to_shared(
            x_box, [begin + i * ROWS, k], bar, x, pred=rows > i * ROWS
        )  # fmt: skip


@gluon.jit
def _load(
    boxes, rings, bars, lists, items, GROUPS: gl.constexpr, SILU: gl.constexpr,
    PER_TOKEN: gl.constexpr, N: gl.constexpr, K: gl.constexpr,
):  # fmt: skip
    """All steps of all tiles, each as soon as its place is empty."""
    full, empty = bars
    BLOCKS: gl.constexpr = N // WIDE
    step = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        expert, begin, end = _tile(lists, item, BLOCKS)
        if begin < end:
            line = expert * (2 * N if SILU else N) + item % BLOCKS * WIDE
            if SILU:
                first = _gathered(boxes[2], lists[0], begin, end, PER_TOKEN, K)
                second = _gathered(boxes[2], lists[0], begin + ROWS, end, PER_TOKEN, K)
            for k in range(0, K, DEEP):
                place = step % STAGES
                mbarrier.wait(empty.index(place), ((step // STAGES) & 1) ^ 1)
                bar = full.index(place)
                if SILU:
                    both = begin + ROWS < end
                    _gather_step(boxes, rings, bar, first, second, line, k, place, both, N)
                else:
                    _copy_step(boxes, rings, bar, end - begin, begin, line, k, place, GROUPS)
                step += 1


@gluon.jit
def _row(lists, places, P, SILU: gl.constexpr, PER_TOKEN: gl.constexpr):
    """The rows whose scales the rows at these places use."""
    row = gl.minimum(places, P - 1)
    if SILU:
        row = gl.load(lists[0] + row) // PER_TOKEN
    return row


@gluon.jit
def _scales(pointers, row, line, step, SILU: gl.constexpr, N: gl.constexpr, K: gl.constexpr):
    """One step's scales of rows, of downs or gates, and of ups. line: where a block's scales
    begin."""
    x_scale_ptr, w_scale_ptr, _out_ptr = pointers
    at = w_scale_ptr + line + step
    w_scale = gl.load(at)
    up_scale = w_scale
    if SILU:
        up_scale = gl.load(at + N // WIDE * (K // DEEP))
    return gl.load(x_scale_ptr + row * (K // DEEP) + step), w_scale, up_scale


@gluon.jit
def _multiply(
    pointers, rings, bars, lists, P, row, next_places, line, next_line, x_scale, w_scale, up_scale,
    step, ME: gl.constexpr, GROUPS: gl.constexpr, SILU: gl.constexpr, PER_TOKEN: gl.constexpr,
    N: gl.constexpr, K: gl.constexpr,
):  # fmt: skip
    """A group's sums of a tile. Scales are read a step ahead, those of the next tile's first, too:
    given are the first step's."""
    x_ring, w_ring, _results = rings
    full, empty = bars
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDE, 32])
    zeros = gl.zeros([ROWS, WIDE], gl.float32, layout=LAYOUT)
    acc = zeros
    up = zeros
    for k in range(K // DEEP):
        place = step % STAGES
        ahead = k + 1 < K // DEEP
        if not ahead:
            row = _row(lists, next_places, P, SILU, PER_TOKEN)
        mbarrier.wait(full.index(place), (step // STAGES) & 1)
        if SILU:
            fence_async_shared()  # rows are no copies by descriptor
        x = x_ring.index(GROUPS * place + ME)
        w = w_ring.index((2 if SILU else 1) * place).permute((1, 0))
        part = warpgroup_mma(x, w, zeros, use_acc=False, is_async=True)
        scale, scale_of_up = x_scale * w_scale, x_scale * up_scale
        at = gl.where(ahead, line, next_line)
        following = gl.where(ahead, k + 1, 0)
        x_scale, w_scale, up_scale = _scales(pointers, row, at, following, SILU, N, K)
        part = warpgroup_mma_wait(0, deps=[part])
        if SILU:
            acc += part * scale[:, None]
            w = w_ring.index(2 * place + 1).permute((1, 0))
            part = warpgroup_mma(x, w, zeros, use_acc=False, is_async=True)
            part = warpgroup_mma_wait(0, deps=[part])
            mbarrier.arrive(empty.index(place), count=1)
            up += part * scale_of_up[:, None]
        else:
            mbarrier.arrive(empty.index(place), count=1)
            acc += part * scale[:, None]
        step += 1
    return acc, up, row, x_scale, w_scale, up_scale


@gluon.jit
def _store(
    out_ptr, lists, result, acc, begin, end, first, SILU: gl.constexpr, N: gl.constexpr
):  # fmt: skip
    """A group's rows of 128 columns, by way of shared memory, so that each is written as one."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    result.store(acc.to(result.dtype))
    at = begin + gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    real = at < end
    to = at
    if not SILU:
        to = gl.load(lists[0] + at, mask=real, other=0)
    n = first + gl.arange(0, WIDE, layout=gl.SliceLayout(0, LAYOUT))
    there = out_ptr + to.to(gl.int64)[:, None] * N + n[None, :]
    gl.store(there, result.load(LAYOUT), mask=real[:, None])


@gluon.jit
def _sum(
    pointers, rings, bars, lists, sizes, ME: gl.constexpr, GROUPS: gl.constexpr,
    SILU: gl.constexpr, PER_TOKEN: gl.constexpr, N: gl.constexpr, K: gl.constexpr,
):  # fmt: skip
    """A group's rows of all tiles. ME: which group."""
    P, items = sizes
    full, empty = bars
    BLOCKS: gl.constexpr = N // WIDE
    STEPS: gl.constexpr = K // DEEP
    LINES: gl.constexpr = 2 * BLOCKS if SILU else BLOCKS  # of an expert's scales
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDE, 32])
    lane = ME * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    step = 0
    item = gl.program_id(0)
    expert, begin, end = _tile(lists, item, BLOCKS)
    line = (expert * LINES + item % BLOCKS) * STEPS
    row = _row(lists, begin + lane, P, SILU, PER_TOKEN)
    x_scale, w_scale, up_scale = _scales(pointers, row, line, 0, SILU, N, K)
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        following = gl.minimum(item + gl.num_programs(0), items - 1)
        expert, next_begin, next_end = _tile(lists, following, BLOCKS)
        next_line = (expert * LINES + following % BLOCKS) * STEPS
        if begin + ME * ROWS < end:
            acc, up, row, x_scale, w_scale, up_scale = _multiply(
                pointers, rings, bars, lists, P, row, next_begin + lane, line, next_line, x_scale,
                w_scale, up_scale, step, ME, GROUPS, SILU, PER_TOKEN, N, K,
            )  # fmt: skip
            if SILU:
                acc = acc / (1.0 + gl.exp(-acc)) * up
            here = begin + ME * ROWS
            result = rings[2].index(ME)
            _store(pointers[2], lists, result, acc, here, end, item % BLOCKS * WIDE, SILU, N)
        else:
            if begin < end:
                for other in range(step, step + STEPS):
                    mbarrier.wait(full.index(other % STAGES), (other // STAGES) & 1)
                    mbarrier.arrive(empty.index(other % STAGES), count=1)
            row = _row(lists, next_begin + lane, P, SILU, PER_TOKEN)
            x_scale, w_scale, up_scale = _scales(pointers, row, next_line, 0, SILU, N, K)
        step += gl.where(begin < end, STEPS, 0)
        begin, end, line = next_begin, next_end, next_line


@gluon.jit(do_not_specialize=["P", "most_tiles"])
def _hopper_fp8_kernel(
    x_box, w_box, x_ptr, x_scale_ptr, w_scale_ptr, out_ptr, pairs_ptr, tiles_ptr, P, most_tiles,
    SILU: gl.constexpr, PER_TOKEN: gl.constexpr, N: gl.constexpr, K: gl.constexpr,
    GROUPS: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """grid (programs,). x_ptr: [T, K] with SILU, x_box: of the same, else of [P, K]; w_box: of all
    experts' lines; w_scale_ptr: [E, lines / 128, K / 128]; out_ptr: [P, N], by place with SILU,
    else by pair."""
    TYPE: gl.constexpr = out_ptr.dtype.element_ty
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, WIDE], TYPE)
    BLOCKS: gl.constexpr = 2 if SILU else 1  # of weights, a step
    x_ring = gl.allocate_shared_memory(x_box.dtype, [STAGES * GROUPS, ROWS, DEEP], x_box.layout)
    w_ring = gl.allocate_shared_memory(w_box.dtype, [STAGES * BLOCKS, WIDE, DEEP], w_box.layout)
    results = gl.allocate_shared_memory(TYPE, [GROUPS, ROWS, WIDE], LAYOUT)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=129 if SILU else 1)  # each thread that gathers, too
        mbarrier.init(empty.index(i), count=GROUPS)
    fence_async_shared()
    boxes, pointers = (x_box, w_box, x_ptr), (x_scale_ptr, w_scale_ptr, out_ptr)
    rings, bars = (x_ring, w_ring, results), (full, empty)
    lists = (pairs_ptr, tiles_ptr, most_tiles)
    sizes = (P, most_tiles * (N // WIDE))
    FIRST: gl.constexpr = 0
    SECOND: gl.constexpr = 1
    THIRD: gl.constexpr = 2
    if GROUPS == 2:
        gl.warp_specialize([
            (_sum, (pointers, rings, bars, lists, sizes, FIRST, GROUPS, SILU, PER_TOKEN, N, K)),
            (_sum, (pointers, rings, bars, lists, sizes, SECOND, GROUPS, SILU, PER_TOKEN, N, K)),
            (_load, (boxes, rings, bars, lists, sizes[1], GROUPS, SILU, PER_TOKEN, N, K)),
        ], [4, 4], [REGISTERS, _LOADER])  # fmt: skip
    else:
        gl.warp_specialize([
            (_sum, (pointers, rings, bars, lists, sizes, FIRST, GROUPS, SILU, PER_TOKEN, N, K)),
            (_sum, (pointers, rings, bars, lists, sizes, SECOND, GROUPS, SILU, PER_TOKEN, N, K)),
            (_sum, (pointers, rings, bars, lists, sizes, THIRD, GROUPS, SILU, PER_TOKEN, N, K)),
            (_load, (boxes, rings, bars, lists, sizes[1], GROUPS, SILU, PER_TOKEN, N, K)),
        ], [4, 4, 1], [REGISTERS, REGISTERS, _LOADER])  # fmt: skip


def grouped(
    x: Quantized, weight: Weight, out: Tensor, order: Order, per_token: int, *, silu: bool
) -> None:
    """As `products_fp8.grouped_fp8`, of pairs in order, in tiles as high as `tiles.GROUPS` says."""
    assert weight.scale is not None
    pairs, columns = out.shape
    width, groups = weight.data.shape[2], tiles.GROUPS[silu]
    listed = order.tiles if silu else order.down_tiles
    items = listed.shape[1] * (columns // WIDE.value)
    _hopper_fp8_kernel[(min(items, support.multiprocessors(out.device)),)](
        _box(x.data, GROUP_ROWS), _box(weight.data.flatten(0, 1), WIDE.value), x.data, x.scale,
        weight.scale, out, order.pairs, listed, pairs, listed.shape[1],
        SILU=silu, PER_TOKEN=per_token, N=columns, K=width, GROUPS=groups,
        REGISTERS=_REGISTERS[silu], num_warps=4, maxnreg=_FIRST[silu],
    )  # fmt: skip


def _box(matrix: Tensor, rows: int) -> TensorDescriptor:
    """A descriptor of a contiguous matrix, copied so many rows and a step of K at a time."""
    return box(matrix, list(matrix.shape), [rows, DEEP.value])
