"""Prefill attention for sm_90: a warp loads while groups of four warps attend.

Invariant: the arguments, the tiles and the order of sums of prefill.py's kernel, and its bits: each
query's tiles of keys in turn, the running maximum, weights and sum scaled to it at every tile, the
sum over a tile's weights and the products in one order. prefill.py's kernel is the twin to compare
with; `prefill_launch.for_hopper` says which launches come here.

In Gluon, the level below Triton. A group has ROWS rows of a program's tile, consecutive tokens, and
takes the tiles of keys in order as if it were alone. The product of a tile's weights with its
values and that of the next tile's keys are in flight together; the assembler puts the softmax
behind both. So what it runs beside are the products of others: of a program's two other groups,
which share the copy of each tile, or of the multiprocessor's other program of one group.

Three groups make a tile three times as high, so a launch has a third of the programs, and a row
fills one of its own less: its first, which sees the fewest keys. `prefill_launch.plan_launches`
says which steps gain. Who owns a place of the rings:

    tile of keys     the loader, until its barrier in `k_full`; then the products with the queries,
                     until all groups have arrived at `k_empty`
    tile of values   alike, with the products of the weights

A group that sees fewer tiles than another still arrives at the rest (`_skip`).

Which row, which context and which block come first is read before the wait for the kernel ahead, as
in decode.py, which says why that is safe.

Source: FlashAttention-3 (Shah et al., 2024).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any

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

from quire.kernels.attention.prefill_launch import PrefillLaunch, num_tiles
from quire.kernels.gluon_boxes import cache_box

_LOG2E = 1.4426950408889634
ROWS = gl.constexpr(64)  # of a group
_STAGES = {1: 2, 3: 3}  # tiles of keys, and of values, in shared memory, by groups
_START = 128  # registers a thread, which the warps then divide:
_GROUP = gl.constexpr(160)  # of a group that is not the program's first, which has the rest
LOADER = gl.constexpr(24)
ALIGNED = gl.constexpr(8)  # q's elements, so that they are loaded 16 bytes at a time


@gluon.jit
def find_row(starts_ptr, tile, rows, QT: gl.constexpr, WARPS: gl.constexpr):
    """As prefill.find_row."""
    index = gl.arange(0, 128, layout=gl.BlockedLayout([1], [32], [WARPS], [0]))
    owner = 0
    for r in range(0, rows, 128):
        start = gl.load(starts_ptr + r + index, mask=r + index < rows, other=0).to(gl.int32)
        first = gl.where(r + index < rows, start // QT + r + index, 2147483647)
        owner += gl.sum((first <= tile).to(gl.int32), 0)
    return owner - 1


@gluon.jit
def find(
    starts_ptr, contexts_ptr, rows, least,
    QT: gl.constexpr, BN: gl.constexpr, MOST: gl.constexpr,
):  # fmt: skip
    """The program's row, its first token of it, and how many tiles of keys it sees (or none). A
    row's tiles end where it ends: the token of its first may be negative."""
    tile = gl.num_programs(1) - 1 - gl.program_id(1)
    row = 0
    if rows > 1:
        row = find_row(starts_ptr, tile, rows, QT, 4)
    start = gl.load(starts_ptr + row).to(gl.int32)
    new = gl.load(starts_ptr + row + 1).to(gl.int32) - start
    context = gl.load(contexts_ptr + row).to(gl.int32)
    behind = gl.cdiv(new, QT) - (tile - (start // QT + row))  # tiles from this one on
    token = new - behind * QT
    n = gl.cdiv(context - behind * QT + QT, BN)
    n = gl.where((behind > 0) & (new >= least) & (new <= MOST), n, 0)
    return row, start, new, context, token, n


@gluon.jit
def load(boxes, rings, bars, table, block, n, HKV: gl.constexpr, BS: gl.constexpr):
    """All tiles of keys and values, each as soon as its place is empty. block: the table's
    first."""
    k_box, v_box = boxes
    k_ring, v_ring = rings
    k_full, k_empty, v_full, v_empty = bars
    STAGES: gl.constexpr = k_ring.shape[0]
    BN: gl.constexpr = k_ring.shape[1]
    BYTES: gl.constexpr = BN * k_ring.shape[2] * 2
    for j in range(n):
        following = gl.load(table + gl.minimum(j + 1, n - 1) * BN // BS)
        first = (block * HKV + gl.program_id(0)) * BS + (j * BN) % BS
        place = j % STAGES
        phase = ((j // STAGES) & 1) ^ 1
        mbarrier.wait(k_empty.index(place), phase)
        bar = k_full.index(place)
        mbarrier.expect(bar, BYTES)
        tma.async_copy_global_to_shared(k_box, [first, 0], bar, k_ring.index(place))
        mbarrier.wait(v_empty.index(place), phase)
        bar = v_full.index(place)
        mbarrier.expect(bar, BYTES)
        tma.async_copy_global_to_shared(v_box, [first, 0], bar, v_ring.index(place))
        block = following


@gluon.jit
def scores(q, j, k_ring, k_full, S_LAYOUT: gl.constexpr):
    """Begin the product of the queries with tile j of keys."""
    STAGES: gl.constexpr = k_ring.shape[0]
    BN: gl.constexpr = k_ring.shape[1]
    none = gl.zeros([ROWS, BN], gl.float32, layout=S_LAYOUT)
    mbarrier.wait(k_full.index(j % STAGES), (j // STAGES) & 1)
    keys = k_ring.index(j % STAGES).permute((1, 0))
    return warpgroup_mma(q, keys, none, use_acc=False, is_async=True)


@gluon.jit
def _weigh(s, m, total, scale, DTYPE: gl.constexpr, O_LAYOUT: gl.constexpr):
    """A tile's weights, by what was summed before is scaled, and the new maximum and sum."""
    top = gl.maximum(m, gl.max(s, 1) * scale)
    p = gl.exp2(s * scale - top[:, None])
    old = gl.exp2(m - top)
    total = total * old + gl.sum(p, 1)
    return gl.convert_layout(p.to(DTYPE), gl.DotOperandLayout(0, O_LAYOUT, 2)), old, top, total


@gluon.jit
def _sum(weights, acc, j, v_ring, v_full):
    """Begin to add the product of the weights with tile j of values."""
    STAGES: gl.constexpr = v_ring.shape[0]
    mbarrier.wait(v_full.index(j % STAGES), (j // STAGES) & 1)
    return warpgroup_mma(weights, v_ring.index(j % STAGES), acc, is_async=True)


@gluon.jit
def _walk(
    stop, whole, q, weights, acc, m, total, last, scale, rings, bars,
    S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr,
):  # fmt: skip
    """For tiles [0, stop): their product with the values, and the weights of the next one.
    weights: of tile 0. whole: the tile from which on some query does not see all of the next."""
    k_ring, v_ring = rings
    k_full, k_empty, v_full, v_empty = bars
    STAGES: gl.constexpr = k_ring.shape[0]
    BN: gl.constexpr = k_ring.shape[1]
    rn = gl.arange(0, BN, layout=gl.SliceLayout(0, S_LAYOUT))
    for j in range(stop):
        after = j + 1
        s = scores(q, after, k_ring, k_full, S_LAYOUT)
        acc = _sum(weights, acc, j, v_ring, v_full)
        s = warpgroup_mma_wait(1, deps=[s])
        mbarrier.arrive(k_empty.index(after % STAGES), count=1)
        if j >= whole:  # what the diagonal or the end cuts
            s = gl.where((after * BN + rn)[None, :] <= last[:, None], s, -float("inf"))
        weights, old, m, total = _weigh(s, m, total, scale, v_ring.dtype, O_LAYOUT)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(v_empty.index(j % STAGES), count=1)
        acc = acc * gl.convert_layout(old, gl.SliceLayout(1, O_LAYOUT))[:, None]
    return weights, acc, m, total


@gluon.jit
def clear_behind(tile, seen):
    """Zero the rows of a tile from `seen` on: what lies behind the context may be anything. A few
    rows at a time, as they pass through registers."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    BN: gl.constexpr = tile.shape[0]
    for first in gl.static_range(0, BN, 16):
        part = tile.slice(first, 16)
        rows = first + gl.arange(0, 16, layout=gl.SliceLayout(1, layout))
        held = part.load(layout)
        part.store(gl.where((rows < seen)[:, None], held, gl.zeros_like(held)))
    fence_async_shared()


@gluon.jit
def _skip(begin, stop, bars):
    """Leave the tiles that only other groups see."""
    k_full, k_empty, v_full, v_empty = bars
    STAGES: gl.constexpr = k_full.shape[0]
    for j in range(begin, stop):
        phase = (j // STAGES) & 1
        mbarrier.wait(k_full.index(j % STAGES), phase)
        mbarrier.arrive(k_empty.index(j % STAGES), count=1)
        mbarrier.wait(v_full.index(j % STAGES), phase)
        mbarrier.arrive(v_empty.index(j % STAGES), count=1)


@gluon.jit
def _attend(
    q_ptr, out_ptr, scale, q_stride, queries, rings, bars, new, context, token, every,
    ME: gl.constexpr, G: gl.constexpr, HKV: gl.constexpr,
):  # fmt: skip
    """A group's rows of the program's tile, whose first is at q_ptr and out_ptr. ME: which
    group."""
    k_ring, v_ring = rings
    k_full, k_empty, v_full, v_empty = bars
    STAGES: gl.constexpr = k_ring.shape[0]
    BN: gl.constexpr = k_ring.shape[1]
    D: gl.constexpr = k_ring.shape[2]
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    DTYPE: gl.constexpr = k_ring.dtype
    QT: gl.constexpr = ROWS // G  # tokens a group
    token += ME * QT
    prefix = context - new
    n = gl.cdiv(prefix + token + QT, BN)
    n = gl.where((every > 0) & (token + QT > 0), n, 0)
    if n > 0:
        rm = gl.arange(0, ROWS, layout=gl.SliceLayout(1, WIDE))[:, None]
        rd = gl.arange(0, D, layout=gl.SliceLayout(0, WIDE))[None, :]
        ok = (rm < QT * G) & (token + rm // G >= 0)
        mine = ME * QT + rm // G
        inside = rm % G * D + rd
        q = queries.index(ME)
        q.store(gl.load(q_ptr + (mine * q_stride + inside), mask=ok, other=0.0))
        fence_async_shared()
        # Padded tile rows see something too, so that no maximum stays at -inf.
        rows_of_s = gl.arange(0, ROWS, layout=gl.SliceLayout(1, S_LAYOUT))
        last = prefix + gl.minimum(gl.maximum(token + rows_of_s // G, 0), new - 1)
        m = gl.full([ROWS], -float("inf"), gl.float32, layout=gl.SliceLayout(1, S_LAYOUT))
        total = gl.zeros([ROWS], gl.float32, layout=gl.SliceLayout(1, S_LAYOUT))
        acc = gl.zeros([ROWS, D], gl.float32, layout=O_LAYOUT)

        s = scores(q, 0, k_ring, k_full, S_LAYOUT)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(k_empty.index(0), count=1)
        rn = gl.arange(0, BN, layout=gl.SliceLayout(0, S_LAYOUT))
        s = gl.where(rn[None, :] <= last[:, None], s, -float("inf"))
        weights, _old, m, total = _weigh(s, m, total, scale, DTYPE, O_LAYOUT)
        whole = gl.maximum((prefix + gl.maximum(token, 0) + 1) // BN - 1, 0)
        weights, acc, m, total = _walk(
            n - 1, whole, q, weights, acc, m, total, last, scale, rings, bars, S_LAYOUT, O_LAYOUT
        )
        final = n - 1
        if n * BN > context:  # all groups that come here write the same
            mbarrier.wait(v_full.index(final % STAGES), (final // STAGES) & 1)
            clear_behind(v_ring.index(final % STAGES), context - final * BN)
        acc = _sum(weights, acc, final, v_ring, v_full)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(v_empty.index(final % STAGES), count=1)
        acc = acc / gl.convert_layout(total, gl.SliceLayout(1, O_LAYOUT))[:, None]
        out = gl.convert_layout(acc.to(DTYPE), WIDE)
        gl.store(out_ptr + (mine * (HKV * G * D) + inside), out, mask=ok)
    _skip(n, every, bars)


@gluon.jit(
    do_not_specialize=["q_units", "table_stride", "rows", "least"],
    do_not_specialize_on_alignment=["tables_ptr", "starts_ptr", "contexts_ptr"],
)
def _hopper_prefill_kernel(
    q_ptr, k_box, v_box, tables_ptr, starts_ptr, contexts_ptr, out_ptr, scale, q_units,
    table_stride, rows, least,
    G: gl.constexpr, HKV: gl.constexpr, D: gl.constexpr, BS: gl.constexpr, BN: gl.constexpr,
    MOST: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """grid (HKV, tiles): rows of least to MOST new tokens; others belong to another launch.
    q_units: of ALIGNED elements from a token to the next."""
    DTYPE: gl.constexpr = q_ptr.dtype.element_ty
    TILE: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, D], DTYPE)
    BARS: gl.constexpr = mbarrier.MBarrierLayout()
    row, start, new, context, token, n = find(
        starts_ptr, contexts_ptr, rows, least, ROWS // G * GROUPS, BN, MOST
    )
    table = tables_ptr + row.to(gl.int64) * table_stride
    block = gl.load(table)
    queries = gl.allocate_shared_memory(DTYPE, [GROUPS, ROWS, D], TILE)
    k_ring = gl.allocate_shared_memory(DTYPE, [STAGES, BN, D], k_box.layout)
    v_ring = gl.allocate_shared_memory(DTYPE, [STAGES, BN, D], v_box.layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARS)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARS)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARS)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARS)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=GROUPS)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=GROUPS)
    fence_async_shared()
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    first, head = (start + token).to(gl.int64), gl.program_id(0) * (G * D)
    q_stride = q_units * ALIGNED
    q_ptr += first * q_stride + head
    out_ptr += first * (HKV * G * D) + head
    rings = (k_ring, v_ring)
    bars = (k_full, k_empty, v_full, v_empty)
    FIRST: gl.constexpr = 0
    SECOND: gl.constexpr = 1
    THIRD: gl.constexpr = 2
    if GROUPS == 1:
        gl.warp_specialize([
            (_attend, (q_ptr, out_ptr, scale, q_stride, queries, rings, bars, new, context, token,
                       n, FIRST, G, HKV)),
            (load, ((k_box, v_box), rings, bars, table, block, n, HKV, BS)),
        ], [1], [LOADER])  # fmt: skip
    else:
        gl.warp_specialize([
            (_attend, (q_ptr, out_ptr, scale, q_stride, queries, rings, bars, new, context, token,
                       n, FIRST, G, HKV)),
            (_attend, (q_ptr, out_ptr, scale, q_stride, queries, rings, bars, new, context, token,
                       n, SECOND, G, HKV)),
            (_attend, (q_ptr, out_ptr, scale, q_stride, queries, rings, bars, new, context, token,
                       n, THIRD, G, HKV)),
            (load, ((k_box, v_box), rings, bars, table, block, n, HKV, BS)),
        ], [4, 4, 1], [_GROUP, _GROUP, LOADER])  # fmt: skip


def launched(
    kernel: Any,
    groups: int,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    context_lens: Tensor,
    out: Tensor,
    scale: float,
    *,
    launch: PrefillLaunch,
    pdl: bool,
    **constants: int,
) -> None:
    """Launch a kernel of whole contexts, whose programs have so many groups. q: heads side by side.
    constants: the kernel's own, and the compiler's."""
    tokens, q_heads, dim = q.shape
    rows = context_lens.shape[0]
    _, kv_heads, block_size, _ = k_cache.shape
    shape, group = launch.tiles, q_heads // kv_heads
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    kernel[(kv_heads, num_tiles(tokens, rows, group, shape, groups))](
        q, cache_box(k_cache, shape.keys), cache_box(v_cache, shape.keys), block_tables,
        query_start_loc, context_lens, out, scale * _LOG2E, q.stride(0) // ALIGNED.value,
        block_tables.stride(0), rows, launch.least, G=group, HKV=kv_heads, D=dim, BS=block_size,
        BN=shape.keys, MOST=launch.most, PDL=pdl, num_warps=4, **constants, **options,
    )  # fmt: skip


def attend(*arguments: Any, launch: PrefillLaunch, pdl: bool) -> None:
    """One launch of `prefill.prefill_attention`. arguments: its tensors and scale, as of
    `launched`."""
    groups = launch.groups
    launched(
        _hopper_prefill_kernel, groups, *arguments, launch=launch, pdl=pdl, GROUPS=groups,
        STAGES=_STAGES[groups], maxnreg=_START,
    )  # fmt: skip
