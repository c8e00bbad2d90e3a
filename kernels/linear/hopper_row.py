"""One row from an attention's result to the next attention's q, k and v, as one kernel for sm_90.

    attended [1, Q]      -> o, + residual         -> middle [1, H]
    norm of middle       -> gate and up, SiLU·mul -> inner  [1, INNER]
    inner                -> down, + middle        -> out    [1, H]
    norm of out          -> the next layer's qkv  -> [1, N]

Where each product is a kernel, the memory is idle between two of them: the last results of one are
on their way, and nobody asks for weights of the next. Here a multiprocessor has one program with a
loader, which is at the next product's weights, as far as its ring has room, while others wait.

How a result gets about: `middle`, `inner` and `out` are EMPTY, a number that no rounding gives, all
over (`row_launch.new_rooms`) until a result is there. A program that needs one of them reads all of
it until nothing is EMPTY: no flag follows the data, and no fence stands between. So all programs
must run at once, which a cooperative launch makes sure of, whoever else uses the card.

Why few weights are asked for at a time (`Sizes.in_flight`): what is on its way stands in one
queue with the results that everybody waits for.

Order of sums: K in steps of SHARES shares of 64 columns. A share is summed over the steps in order
by the matrix units, in fp32, and the shares are added along a tree. A norm scales before the sum
and is rounded, as each result is, once, with its residual. No bit depends on how many programs
there are.

Who owns a place in the ring: the loader, until its barrier in `full`; then the group that
multiplies, until its barrier in `empty`.

Sources: CUTLASS's kernels with specialised warps; one kernel for many products of one row: Spector
et al., "Look Ma, No Bubbles!" (2025).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from typing import Any

import torch
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
from quire.kernels.linear.row_launch import (
    EMPTY,
    PIECE,
    ROWS,
    SHARE,
    SHARES,
    Room,
    Sizes,
)
from quire.kernels.weight import RowWeights

TILE = gl.constexpr(ROWS)
PARTS = gl.constexpr(SHARES)
WIDE = gl.constexpr(SHARE)
DEEP = gl.constexpr(SHARES * SHARE)
PART = gl.constexpr(PIECE)
NOT_YET = gl.constexpr(EMPTY)
_WARPS = gl.constexpr(4)
_LOADER = gl.constexpr(40)  # registers a thread
_REGISTERS = 104  # at the start: 168 of each thread that multiplies, and room for attention beside


@gluon.jit
def _place(full, empty, n, AHEAD: gl.constexpr):
    """The place of step n of all, once it is empty and fewer than AHEAD are on their way."""
    STAGES: gl.constexpr = full.shape[0]
    slot = n % STAGES
    mbarrier.wait(empty.index(slot), ((n // STAGES) & 1) ^ 1)
    if n >= AHEAD:
        old = n - AHEAD
        mbarrier.wait(full.index(old % STAGES), (old // STAGES) & 1)
    return slot


@gluon.jit
def _load_tile(
    box, first, ring, bars, n, STEPS: gl.constexpr, AHEAD: gl.constexpr,
    PAIRS: gl.constexpr,
):  # fmt: skip
    """All steps of a tile, whose rows begin at `first` of the weight's; with PAIRS half of them are
    gates and half ups."""
    full, empty = bars
    for k in range(STEPS):
        slot = _place(full, empty, n, AHEAD)
        bar = full.index(slot)
        mbarrier.expect(bar, PARTS * TILE * WIDE * 2)
        place = ring.index(slot)
        if PAIRS:
            to = place._reinterpret(box.dtype, [PARTS, 2, TILE // 2, WIDE], box.layout)
            tma.async_copy_global_to_shared(box, [k * PARTS, 0, first // 2, 0], bar, to)
        else:
            to = place._reinterpret(box.dtype, [PARTS, TILE, WIDE], box.layout)
            tma.async_copy_global_to_shared(box, [k * PARTS, first, 0], bar, to)
        n += 1
    return n


@gluon.jit
def _load(
    boxes, ring, bars, ends, H: gl.constexpr, Q: gl.constexpr, INNER: gl.constexpr,
    AHEAD: gl.constexpr,
):  # fmt: skip
    """The weights of this program's tiles of all products."""
    o_box, gate_up_box, down_box, qkv_box = boxes
    o_end, gate_up_end, down_end, end = ends
    n = 0
    for tile in range(gl.program_id(0), end, gl.num_programs(0)):
        if tile < o_end:
            n = _load_tile(o_box, tile * TILE, ring, bars, n, Q // DEEP, AHEAD, False)
        elif tile < gate_up_end:
            first = (tile - o_end) * TILE
            n = _load_tile(gate_up_box, first, ring, bars, n, H // DEEP, AHEAD, True)
        elif tile < down_end:
            first = (tile - gate_up_end) * TILE
            n = _load_tile(down_box, first, ring, bars, n, INNER // DEEP, AHEAD, False)
        else:
            first = (tile - down_end) * TILE
            n = _load_tile(qkv_box, first, ring, bars, n, H // DEEP, AHEAD, False)


@gluon.jit
def _arrived(x_ptr, at, inside):
    """The numbers at these places, as bits, once none of them is EMPTY; zeros outside."""
    value = gl.load(x_ptr + at, mask=inside, other=0, volatile=True)
    while gl.max((value == NOT_YET).to(gl.int32), 0) != 0:
        value = gl.load(x_ptr + at, mask=inside, other=0, volatile=True)
    return value


@gluon.jit
def _take(x_ptr, xs, K: gl.constexpr, LATE: gl.constexpr):
    """x [K] into shared memory; with LATE once all of it is there."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([8], [32], [_WARPS], [0])
    PIECES: gl.constexpr = (K + PART - 1) // PART
    k = gl.arange(0, PART, layout=LAYOUT)
    late = 1
    while late != 0:
        x = ()
        missing = gl.zeros([PART], gl.int32, layout=LAYOUT)
        for piece in gl.static_range(PIECES):
            at = piece * PART + k
            value = gl.load(x_ptr + at, mask=at < K, other=0, volatile=LATE)
            missing = missing | (value == NOT_YET).to(gl.int32)
            x = x + (value,)  # noqa: RUF005 (what Triton reads)
        for piece in gl.static_range(PIECES):
            value = x[piece].to(xs.dtype, bitcast=True)
            xs.index(piece).store(gl.reshape(value, [PART // WIDE, WIDE]))
        late = gl.max(missing, 0) if LATE else 0
    fence_async_shared()


@gluon.jit
def _take_normed(x_ptr, norm_ptr, xs, eps, K: gl.constexpr, PADDED: gl.constexpr):
    """The norm of x [K] into shared memory, once all of x is there."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([8], [32], [_WARPS], [0])
    k = gl.arange(0, PADDED, layout=LAYOUT)
    norm = gl.load(norm_ptr + k, mask=k < K, other=0.0).to(gl.float32)
    x = _arrived(x_ptr, k, k < K).to(xs.dtype, bitcast=True).to(gl.float32)
    x = (x * gl.rsqrt(gl.sum(x * x, 0) / K + eps) * norm).to(xs.dtype)
    whole = xs._reinterpret(xs.dtype, [PADDED // WIDE, WIDE], xs.layout)
    whole.store(gl.reshape(x, [PADDED // WIDE, WIDE]))
    fence_async_shared()


@gluon.jit
def _product(xs, ring, bars, n, STEPS: gl.constexpr):
    """A tile's rows by x: [TILE], and the number of the step that follows."""
    full, empty = bars
    STAGES: gl.constexpr = full.shape[0]
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [_WARPS, 1], [16, PARTS, 16])
    steps = xs._reinterpret(xs.dtype, [xs.shape[0] * PART // DEEP, PARTS, WIDE], xs.layout)
    acc = gl.zeros([PARTS * TILE, PARTS], gl.float32, layout=SUMS)
    for k in range(STEPS):
        mbarrier.wait(full.index(n % STAGES), (n // STAGES) & 1)
        x = steps.index(k).permute((1, 0))
        acc = warpgroup_mma(ring.index(n % STAGES), x, acc, use_acc=k > 0, is_async=True)
        acc = warpgroup_mma_wait(1, deps=[acc])
        mbarrier.arrive(empty.index((n + STAGES - 1) % STAGES), count=1, pred=k > 0)
        n += 1
    acc = warpgroup_mma_wait(0, deps=[acc])
    mbarrier.arrive(empty.index((n + STAGES - 1) % STAGES), count=1)
    # Each share of the rows by each share of x: of that the equal ones.
    acc = gl.reshape(acc, [PARTS, TILE, PARTS])
    LAYOUT: gl.constexpr = acc.type.layout
    of_rows = gl.arange(0, PARTS, layout=gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))
    of_x = gl.arange(0, PARTS, layout=gl.SliceLayout(0, gl.SliceLayout(0, LAYOUT)))
    of_rows = gl.expand_dims(gl.expand_dims(of_rows, 1), 2)
    equal = of_rows == gl.expand_dims(gl.expand_dims(of_x, 0), 0)
    sums = gl.sum(gl.sum(gl.where(equal, acc, 0.0), 2), 0)
    return gl.convert_layout(sums, gl.BlockedLayout([1], [32], [_WARPS], [0])), n


@gluon.jit
def _add(out_ptr, at, before, y, DTYPE: gl.constexpr):
    """Sums and a residual, which comes as bits and so does what is stored, rounded once."""
    y = (y + before.to(DTYPE, bitcast=True).to(gl.float32)).to(DTYPE)
    gl.store(out_ptr + at, y.to(gl.int16, bitcast=True))


@gluon.jit
def _multiply(
    pointers, xs, ring, bars, ends, eps, H: gl.constexpr, Q: gl.constexpr, INNER: gl.constexpr,
    PADDED: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """The tiles of one product after another, and what is done with their sums."""
    x_ptr, residual_ptr, post_norm_ptr, next_norm_ptr, qkv_ptr, middle_ptr = pointers
    inner_ptr, out_ptr = middle_ptr + H, middle_ptr + H + INNER
    o_end, gate_up_end, down_end, end = ends
    DTYPE: gl.constexpr = xs.dtype
    r = gl.arange(0, TILE, layout=gl.BlockedLayout([1], [32], [_WARPS], [0]))
    if PDL:
        gdc_wait()
    n = 0
    tile = gl.program_id(0)
    if tile < o_end:
        _take(x_ptr, xs, Q, False)
        while tile < o_end:
            at = tile * TILE + r
            before = gl.load(residual_ptr + at, cache_modifier=".cg")
            y, n = _product(xs, ring, bars, n, Q // DEEP)
            _add(middle_ptr, at, before, y, DTYPE)
            tile += gl.num_programs(0)
    if tile < gate_up_end:
        _take_normed(middle_ptr, post_norm_ptr, xs, eps, H, PADDED)
        while tile < gate_up_end:
            y, n = _product(xs, ring, bars, n, H // DEEP)
            both = gl.permute(gl.reshape(y, [2, TILE // 2]), [1, 0])
            PAIRS: gl.constexpr = gl.BlockedLayout([1, 2], [32, 1], [_WARPS, 1], [1, 0])
            gate, up = gl.split(gl.convert_layout(both, PAIRS))
            y = (gate / (1.0 + gl.exp(-gate)) * up).to(DTYPE)
            at = (tile - o_end) * (TILE // 2) + gl.arange(0, TILE // 2, layout=y.type.layout)
            gl.store(inner_ptr + at, y.to(gl.int16, bitcast=True))
            tile += gl.num_programs(0)
    if tile < down_end:
        _take(inner_ptr, xs, INNER, True)
        while tile < down_end:
            at = (tile - gate_up_end) * TILE + r
            before = _arrived(middle_ptr, at, r < TILE)
            y, n = _product(xs, ring, bars, n, INNER // DEEP)
            _add(out_ptr, at, before, y, DTYPE)
            tile += gl.num_programs(0)
    if tile < end:
        _take_normed(out_ptr, next_norm_ptr, xs, eps, H, PADDED)
        while tile < end:
            y, n = _product(xs, ring, bars, n, H // DEEP)
            gl.store(qkv_ptr + (tile - down_end) * TILE + r, y.to(DTYPE))
            tile += gl.num_programs(0)


@gluon.jit(do_not_specialize=["qkv_rows"])
def _row_kernel(
    x_ptr,  # [Q], its bits as int16, as all of these but norms and qkv
    residual_ptr,  # [H]
    o_box, post_norm_ptr, gate_up_box, down_box, next_norm_ptr, qkv_box,
    qkv_ptr,  # [qkv_rows]
    room_ptr,  # [2 * H + INNER]: middle, inner, out
    qkv_rows, eps,
    H: gl.constexpr, Q: gl.constexpr, INNER: gl.constexpr, PADDED: gl.constexpr,
    PIECES: gl.constexpr, STAGES: gl.constexpr, AHEAD: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """grid (programs,)"""
    DTYPE: gl.constexpr = o_box.dtype
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    ring = gl.allocate_shared_memory(DTYPE, [STAGES, PARTS * TILE, WIDE], LAYOUT)
    xs = gl.allocate_shared_memory(DTYPE, [PIECES, PART // WIDE, WIDE], LAYOUT)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    fence_async_shared()
    if PDL:
        gdc_launch_dependents()
    o_end = H // TILE
    gate_up_end = o_end + 2 * INNER // TILE
    down_end = gate_up_end + H // TILE
    ends = (o_end, gate_up_end, down_end, down_end + qkv_rows // TILE)
    boxes = (o_box, gate_up_box, down_box, qkv_box)
    pointers = (x_ptr, residual_ptr, post_norm_ptr, next_norm_ptr, qkv_ptr, room_ptr)
    bars = (full, empty)
    gl.warp_specialize([
        (_multiply, (pointers, xs, ring, bars, ends, eps, H, Q, INNER, PADDED, PDL)),
        (_load, (boxes, ring, bars, ends, H, Q, INNER, AHEAD)),
    ], [1], [_LOADER])  # fmt: skip


def row(
    attended: Tensor,
    residual: Tensor,
    weights: RowWeights,
    eps: float,
    room: Room,
    *,
    pdl: bool = False,
    programs: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The residual behind the layer, [1, H], which is in the room; and the next layer's qkv,
    [1, N], where there is one.

    attended: [1, Q]; residual: [1, H]; both contiguous. room: this layer's, EMPTY all over.
    programs: for tests, no more than the card has multiprocessors; else as many.
    """
    sizes, device = Sizes.of(weights), attended.device
    norm, weight, qkv = weights.next_norm, weights.next_qkv, attended  # not read without a weight
    if weight is not None:
        qkv = attended.new_empty(1, weight.shape[0])
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    _row_kernel[(programs or support.multiprocessors(device),)](
        attended.view(torch.int16), residual.view(torch.int16), _box(weights.o), weights.post_norm,
        _box(weights.gate_up, halves=2), _box(weights.down),
        weights.post_norm if norm is None else norm, _box(weights.o if weight is None else weight),
        qkv, room.numbers, 0 if weight is None else weight.shape[0], eps,
        H=sizes.hidden, Q=sizes.attended, INNER=sizes.inner, PADDED=sizes.padded,
        PIECES=sizes.pieces, STAGES=sizes.stages(device), AHEAD=sizes.in_flight, PDL=pdl,
        num_warps=4, maxnreg=_REGISTERS, launch_cooperative_grid=True, **options,
    )  # fmt: skip
    return room.out(attended.dtype), None if weight is None else qkv


def _box(weight: Tensor, halves: int = 1) -> TensorDescriptor:
    """A descriptor of a tile's rows in a step of K, its shares one after another; of several halves
    of the weight's rows an equal part each."""
    rows, width = weight.shape
    shares, half = width // SHARE, rows // halves
    if halves == 1:
        return box(weight, [shares, rows, SHARE], [SHARES, ROWS, SHARE], [SHARE, width, 1])
    shape, block = [shares, halves, half, SHARE], [SHARES, halves, ROWS // halves, SHARE]
    return box(weight, shape, block, [SHARE, half * width, width, 1])
