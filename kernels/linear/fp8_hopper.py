"""Products of FP8 weights for sm_90, of some hundred rows: a warp loads while two groups multiply.

Invariant: `out[m, n]` is summed over K in blocks of 128, in order, within each half of K: a block's
128 products in the tensor core, times its two scales, then added in fp32. The second half's sum is
added to the first's, and a residual to what has then been rounded to out's dtype. So a row's result
never depends on the rows beside it. fp8_tiles.py's kernel with K in two is the twin.

In Gluon, the level below Triton. A program has a tile of 128 rows by 128 columns in one half of K,
64 rows for each group of four warps. The products of two blocks are on their way at once, so that
one's are scaled while the other's are made. Programs of first halves begin before those of second
ones, which wait for them. A step's place in shared memory is the loader's, until its barrier in
`full`; then the groups', until both have arrived at `empty`.

Between launches every counter is zero: who has waited for it puts it back.

Source: CUTLASS's cooperative kernels with specialised warps; DeepGEMM's scaled blocks.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any

import torch
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
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.gluon_boxes import box
from quire.kernels.linear.skinny import new_counters
from quire.kernels.weight import Quantized, Weight

ROWS = gl.constexpr(64)  # of a group; a tile has two groups
WIDE = gl.constexpr(128)  # rows of a tile, and columns
DEEP = gl.constexpr(128)  # of K, a step: those that share a scale
STAGES = gl.constexpr(6)  # steps in shared memory
_FIRST = 168  # registers a thread before the warps part
_REGISTERS = gl.constexpr(240)  # and then a group's
_LOADER = gl.constexpr(24)  # and the loader's, the least there is


@gluon.jit
def _mine(sizes):
    """Which half of K, which tile, and the row and the column where that begins: tiles of the same
    weights follow one another."""
    M, _N, _steps, tiles = sizes
    tile = gl.program_id(0) % tiles
    high = gl.cdiv(M, WIDE)
    return gl.program_id(0) // tiles, tile, tile % high * WIDE, tile // high * WIDE


@gluon.jit
def _copy_weights(boxes, rings, full, step, n, k):
    """The weights of a step, and how much of it is to come."""
    bar = full.index(step % STAGES)
    mbarrier.expect(bar, 2 * WIDE * DEEP)
    tma.async_copy_global_to_shared(boxes[1], [n, k * DEEP], bar, rings[1].index(step % STAGES))


@gluon.jit
def _copy_rows(boxes, rings, full, step, m, k):
    """The rows of a step, a group's after another's."""
    place = step % STAGES
    for i in gl.static_range(2):
        x = rings[0].index(2 * place + i)
        tma.async_copy_global_to_shared(boxes[0], [m + i * ROWS, k * DEEP], full.index(place), x)


@gluon.jit
def _load(boxes, rings, bars, sizes):
    """All steps, each as soon as its place is empty; the first weights before the kernel ahead is
    through."""
    full, empty = bars
    steps = sizes[2]
    half, _tile, m, n = _mine(sizes)
    begin = half * steps
    for i in gl.static_range(STAGES):
        if i < steps:
            _copy_weights(boxes, rings, full, i, n, begin + i)
    gdc_wait()
    for i in gl.static_range(STAGES):
        if i < steps:
            _copy_rows(boxes, rings, full, i, m, begin + i)
    for step in range(STAGES, steps):
        mbarrier.wait(empty.index(step % STAGES), ((step // STAGES) & 1) ^ 1)
        _copy_weights(boxes, rings, full, step, n, begin + step)
        _copy_rows(boxes, rings, full, step, m, begin + step)


@gluon.jit
def _begin(rings, full, step, ME: gl.constexpr):
    """The products of a step, on their way."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDE, 32])
    zeros = gl.zeros([ROWS, WIDE], gl.float32, layout=LAYOUT)
    place = step % STAGES
    mbarrier.wait(full.index(place), (step // STAGES) & 1)
    w = rings[1].index(place).permute((1, 0))
    return warpgroup_mma(rings[0].index(2 * place + ME), w, zeros, use_acc=False, is_async=True)


@gluon.jit
def _multiply(scales, rings, bars, sizes, half, m, n, ME: gl.constexpr):
    """A group's sums of half of K, two steps a turn. Their scales are read a turn ahead."""
    x_scale_ptr, row_stride, stride, w_scale_ptr = scales
    full, empty = bars
    M, _N, steps, _tiles = sizes
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDE, 32])
    acc = gl.zeros([ROWS, WIDE], gl.float32, layout=LAYOUT)
    row = m + ME * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    at_x = x_scale_ptr + gl.minimum(row, M - 1) * row_stride + half * steps * stride
    at_w = w_scale_ptr + (n // WIDE * 2 + half) * steps
    x_next, w_next = gl.load(at_x), gl.load(at_w)
    x_later, w_later = gl.load(at_x + stride), gl.load(at_w + 1)
    for step in range(0, steps, 2):
        even = _begin(rings, full, step, ME)
        odd = _begin(rings, full, step + 1, ME)
        even_scale, odd_scale = x_next * w_next, x_later * w_later
        ahead = gl.minimum(step + 2, steps - 2)
        x_next, w_next = gl.load(at_x + ahead * stride), gl.load(at_w + ahead)
        x_later, w_later = gl.load(at_x + (ahead + 1) * stride), gl.load(at_w + ahead + 1)
        even = warpgroup_mma_wait(1, deps=[even])
        mbarrier.arrive(empty.index(step % STAGES), count=1)
        acc += even * even_scale[:, None]
        odd = warpgroup_mma_wait(0, deps=[odd])
        mbarrier.arrive(empty.index((step + 1) % STAGES), count=1)
        acc += odd * odd_scale[:, None]
    return acc


@gluon.jit
def _store(ends, acc, at_sum, counter, sizes, m, n, RESIDUAL: gl.constexpr):
    """A group's rows, from m on, of the second half of K, as soon as the first half's sum is there.
    The residual is on its way before."""
    out_ptr, residual_ptr = ends
    M, N, _steps, _tiles = sizes
    DTYPE: gl.constexpr = out_ptr.dtype.element_ty
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    row = m + gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    column = n + gl.arange(0, WIDE, layout=gl.SliceLayout(0, LAYOUT))
    at = row.to(gl.int64)[:, None] * N + column[None, :]
    real = (row < M)[:, None]
    if RESIDUAL:
        before = gl.load(residual_ptr + at, mask=real, other=0.0)
    while gl.atomic_add(counter, 0, sem="acquire") == 0:
        pass
    gl.thread_barrier()
    gl.store(counter, 0)
    acc = gl.load(at_sum, cache_modifier=".cg") + acc
    y = gl.convert_layout(acc.to(DTYPE), LAYOUT)
    if RESIDUAL:
        y = (y.to(gl.float32) + before.to(gl.float32)).to(DTYPE)
    gl.store(out_ptr + at, y, mask=real)


@gluon.jit
def _sum(
    ends, scales, meeting, rings, bars, sizes, ME: gl.constexpr, RESIDUAL: gl.constexpr
):  # fmt: skip
    """A group's rows. ME: which group."""
    sum_ptr, counter_ptr = meeting
    gdc_wait()
    half, tile, m, n = _mine(sizes)
    acc = _multiply(scales, rings, bars, sizes, half, m, n, ME)
    LAYOUT: gl.constexpr = acc.type.layout
    row = tile * WIDE + ME * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    column = gl.arange(0, WIDE, layout=gl.SliceLayout(0, LAYOUT))
    at_sum = sum_ptr + row[:, None] * WIDE + column[None, :]
    counter = counter_ptr + 2 * tile + ME
    if half == 0:
        gl.store(at_sum, acc)
        gl.thread_barrier()
        gl.atomic_add(counter, 1, sem="release")
    else:
        _store(ends, acc, at_sum, counter, sizes, m + ME * ROWS, n, RESIDUAL)


@gluon.jit(do_not_specialize=["row_stride", "stride", "M", "steps", "tiles"])
def _fp8_hopper_kernel(
    x_box, w_box, x_scale_ptr, row_stride, stride, w_scale_ptr, out_ptr, residual_ptr, sum_ptr,
    counter_ptr, M, N, steps, tiles, RESIDUAL: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """grid (2 * tiles,). x_scale_ptr: [M, 2 * steps] by its strides; w_scale_ptr: [N / 128, 2 *
    steps]; sum_ptr: [tiles, 128, 128], of first halves; steps: of half of K, an even number."""
    x_ring = gl.allocate_shared_memory(x_box.dtype, [2 * STAGES, ROWS, DEEP], x_box.layout)
    w_ring = gl.allocate_shared_memory(w_box.dtype, [STAGES, WIDE, DEEP], w_box.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()
    if PDL:
        gdc_launch_dependents()
    boxes, rings, bars = (x_box, w_box), (x_ring, w_ring), (full, empty)
    scales = (x_scale_ptr, row_stride, stride, w_scale_ptr)
    ends, meeting = (out_ptr, residual_ptr), (sum_ptr, counter_ptr)
    sizes = (M, N, steps, tiles)
    ONE: gl.constexpr = 0
    OTHER: gl.constexpr = 1
    gl.warp_specialize([
        (_sum, (ends, scales, meeting, rings, bars, sizes, ONE, RESIDUAL)),
        (_sum, (ends, scales, meeting, rings, bars, sizes, OTHER, RESIDUAL)),
        (_load, (boxes, rings, bars, sizes)),
    ], [4, 1], [_REGISTERS, _LOADER])  # fmt: skip


def halves(
    x: Quantized,
    weight: Weight,
    out: Tensor,
    *,
    residual: Tensor | None = None,
    counters: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """out = x @ weight.T (+ residual). x: [M, K], K a multiple of 512; weight: [N, K], N one of
    128; out may be residual. counters: as of `fp8_tiles.tiles`."""
    assert weight.scale is not None
    (rows, width), columns = x.data.shape, out.shape[1]
    tiles = triton.cdiv(rows, WIDE.value) * (columns // WIDE.value)
    sums = torch.empty(tiles, WIDE.value, WIDE.value, dtype=torch.float32, device=out.device)
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    _fp8_hopper_kernel[(2 * tiles,)](
        box(x.data, [rows, width], [ROWS.value, DEEP.value]),
        box(weight.data, [columns, width], [WIDE.value, DEEP.value]),
        x.scale, *x.scale.stride(), weight.scale, out, out if residual is None else residual, sums,
        new_counters(out.device) if counters is None else counters,
        rows, columns, width // (2 * DEEP.value), tiles, RESIDUAL=residual is not None, PDL=pdl,
        num_warps=4, maxnreg=_FIRST, **options,
    )  # fmt: skip
