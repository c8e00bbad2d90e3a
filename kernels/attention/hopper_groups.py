"""Prefill attention of long rows for sm_90: a warp loads while three groups of four warps attend.

Invariant: the order of sums of hopper_prefill.py's kernel, and its bits, whose arguments these are.
Each group has GROUP_ROWS rows of a program's tile, consecutive tokens, and takes the tiles of keys
in order as if it were alone. What the groups share is the copy of each tile: one's softmax runs
beside another's products, whatever order the assembler gives each.

A tile is three times as high, so a launch has a third of the programs, and a row's end fills its
last one less: `prefill_launch.plan_launches` says which steps gain. Who owns a place of the rings:

    tile of keys     the loader, until its barrier in `k_full`; then the products with the queries,
                     until all groups have arrived at `k_empty`
    tile of values   alike, with the products of the weights

A group that sees fewer tiles than another still arrives at the rest (`_skip`).

Source: FlashAttention-3 (Shah et al., 2024), specialised warps.
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

from quire.kernels.attention.hopper_prefill import (
    _LOG2E,
    box,
    clear_behind,
    find_row,
    weigh,
)
from quire.kernels.attention.prefill_launch import PrefillLaunch, num_tiles

STAGES = 3  # tiles of keys, and of values, in shared memory
ROWS = gl.constexpr(64)  # of a group
GROUPS = gl.constexpr(3)
_START = 128  # registers a thread, which the warps then divide:
_GROUP = gl.constexpr(160)
_LOADER = gl.constexpr(24)


@gluon.jit
def _find(
    lists, table_stride, rows,
    QT: gl.constexpr, BN: gl.constexpr, LEAST: gl.constexpr, MOST: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """The program's row, its first token of it, and how many tiles of keys it sees (or none)."""
    tables_ptr, starts_ptr, contexts_ptr = lists
    tile = gl.num_programs(1) - 1 - gl.program_id(1)
    row = find_row(starts_ptr, tile, rows, QT, WARPS)
    start = gl.load(starts_ptr + row).to(gl.int32)
    new = gl.load(starts_ptr + row + 1).to(gl.int32) - start
    context = gl.load(contexts_ptr + row).to(gl.int32)
    token = (tile - (start // QT + row)) * QT
    n = gl.cdiv(context - new + gl.minimum(token + QT, new), BN)
    n = gl.where((token < new) & (new >= LEAST) & (new <= MOST), n, 0)
    return start, new, context, token, n, tables_ptr + row.to(gl.int64) * table_stride


@gluon.jit
def _load(
    boxes, rings, bars, lists, table_stride, rows,
    G: gl.constexpr, HKV: gl.constexpr, BS: gl.constexpr, LEAST: gl.constexpr, MOST: gl.constexpr,
):  # fmt: skip
    """All tiles of keys and values, each as soon as its place is empty."""
    k_box, v_box = boxes
    k_ring, v_ring = rings
    k_full, k_empty, v_full, v_empty = bars
    STAGES: gl.constexpr = k_ring.shape[0]
    BN: gl.constexpr = k_ring.shape[1]
    BYTES: gl.constexpr = BN * k_ring.shape[2] * 2
    _start, _new, _context, _token, n, table = _find(
        lists, table_stride, rows, ROWS // G * GROUPS, BN, LEAST, MOST, 1
    )
    block = gl.load(table)
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
def _scores(q, j, k_ring, k_full, S_LAYOUT: gl.constexpr):
    """Begin the product of the queries with tile j of keys."""
    STAGES: gl.constexpr = k_ring.shape[0]
    BN: gl.constexpr = k_ring.shape[1]
    none = gl.zeros([ROWS, BN], gl.float32, layout=S_LAYOUT)
    mbarrier.wait(k_full.index(j % STAGES), (j // STAGES) & 1)
    keys = k_ring.index(j % STAGES).permute((1, 0))
    return warpgroup_mma(q, keys, none, use_acc=False, is_async=True)


@gluon.jit
def _sum(p, acc, j, v_ring, v_full):
    """Begin to add the product of the weights with tile j of values."""
    STAGES: gl.constexpr = v_ring.shape[0]
    weights = gl.convert_layout(p.to(v_ring.dtype), gl.DotOperandLayout(0, acc.type.layout, 2))
    mbarrier.wait(v_full.index(j % STAGES), (j // STAGES) & 1)
    return warpgroup_mma(weights, v_ring.index(j % STAGES), acc, is_async=True)


@gluon.jit
def _walk(begin, stop, q, p, acc, m, total, last, scale, rings, bars, MASKED: gl.constexpr):
    """As hopper_prefill's: for tiles [begin, stop) their product with the values, and the weights
    of the next one."""
    k_ring, v_ring = rings
    k_full, k_empty, v_full, v_empty = bars
    STAGES: gl.constexpr = k_ring.shape[0]
    BN: gl.constexpr = k_ring.shape[1]
    S_LAYOUT: gl.constexpr = p.type.layout
    rn = gl.arange(0, BN, layout=gl.SliceLayout(0, S_LAYOUT))
    for j in range(begin, stop):
        after = j + 1
        s = _scores(q, after, k_ring, k_full, S_LAYOUT)
        acc = _sum(p, acc, j, v_ring, v_full)
        s = warpgroup_mma_wait(1, deps=[s])
        mbarrier.arrive(k_empty.index(after % STAGES), count=1)
        if MASKED:
            s = gl.where((after * BN + rn)[None, :] <= last[:, None], s, -float("inf"))
        p, old, m, total = weigh(s, m, total, scale)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(v_empty.index(j % STAGES), count=1)
        acc = acc * gl.convert_layout(old, gl.SliceLayout(1, acc.type.layout))[:, None]
    return p, acc, m, total


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
    q_ptr, out_ptr, scale, q_stride, queries, rings, bars, lists, table_stride, rows,
    ME: gl.constexpr, G: gl.constexpr, HKV: gl.constexpr, LEAST: gl.constexpr, MOST: gl.constexpr,
):  # fmt: skip
    """A group's rows of the program's tile. ME: which group."""
    k_ring, v_ring = rings
    k_full, k_empty, v_full, v_empty = bars
    STAGES: gl.constexpr = k_ring.shape[0]
    BN: gl.constexpr = k_ring.shape[1]
    D: gl.constexpr = k_ring.shape[2]
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    QT: gl.constexpr = ROWS // G  # tokens a group
    start, new, context, token, every, _table = _find(
        lists, table_stride, rows, QT * GROUPS, BN, LEAST, MOST, 4
    )
    token += ME * QT
    prefix = context - new
    n = gl.cdiv(prefix + gl.minimum(token + QT, new), BN)
    n = gl.where((every > 0) & (token < new), n, 0)
    if n > 0:
        rm = gl.arange(0, ROWS, layout=gl.SliceLayout(1, WIDE))
        rd = gl.arange(0, D, layout=gl.SliceLayout(0, WIDE))
        mine = token + rm // G
        ok = ((rm < QT * G) & (mine < new))[:, None]
        where = (start + mine).to(gl.int64)[:, None]
        inside = (gl.program_id(0) * G + rm % G)[:, None] * D + rd[None, :]
        q_stride = gl.multiple_of(q_stride, 8)
        q = queries.index(ME)
        q.store(gl.load(q_ptr + where * q_stride + inside, mask=ok, other=0.0))
        fence_async_shared()
        # Padded tile rows see what the last real one sees, so that no maximum stays at -inf.
        rows_of_s = gl.arange(0, ROWS, layout=gl.SliceLayout(1, S_LAYOUT))
        last = prefix + gl.minimum(token + rows_of_s // G, new - 1)
        m = gl.full([ROWS], -float("inf"), gl.float32, layout=gl.SliceLayout(1, S_LAYOUT))
        total = gl.zeros([ROWS], gl.float32, layout=gl.SliceLayout(1, S_LAYOUT))
        acc = gl.zeros([ROWS, D], gl.float32, layout=O_LAYOUT)

        s = _scores(q, 0, k_ring, k_full, S_LAYOUT)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(k_empty.index(0), count=1)
        rn = gl.arange(0, BN, layout=gl.SliceLayout(0, S_LAYOUT))
        s = gl.where(rn[None, :] <= last[:, None], s, -float("inf"))
        p, _old, m, total = weigh(s, m, total, scale)
        # Tiles that every query sees whole, then those that the diagonal or the end cuts.
        whole = gl.maximum((prefix + token + 1) // BN - 1, 0)
        p, acc, m, total = _walk(0, whole, q, p, acc, m, total, last, scale, rings, bars, False)
        p, acc, m, total = _walk(whole, n - 1, q, p, acc, m, total, last, scale, rings, bars, True)
        final = n - 1
        if n * BN > context:  # all groups that come here write the same
            mbarrier.wait(v_full.index(final % STAGES), (final // STAGES) & 1)
            clear_behind(v_ring.index(final % STAGES), context - final * BN, 4)
        acc = _sum(p, acc, final, v_ring, v_full)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(v_empty.index(final % STAGES), count=1)
        acc = acc / gl.convert_layout(total, gl.SliceLayout(1, O_LAYOUT))[:, None]
        out = out_ptr + where * (HKV * G * D) + inside
        gl.store(out, gl.convert_layout(acc.to(k_ring.dtype), WIDE), mask=ok)
    _skip(n, every, bars)


@gluon.jit(
    do_not_specialize=["q_stride", "table_stride", "rows"],
    do_not_specialize_on_alignment=["tables_ptr", "starts_ptr", "contexts_ptr"],
)
def _hopper_groups_kernel(
    q_ptr, k_box, v_box, tables_ptr, starts_ptr, contexts_ptr, out_ptr, scale, q_stride,
    table_stride, rows,
    G: gl.constexpr, HKV: gl.constexpr, D: gl.constexpr, BS: gl.constexpr, BN: gl.constexpr,
    LEAST: gl.constexpr, MOST: gl.constexpr, STAGES: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """grid (HKV, tiles): rows of LEAST to MOST new tokens; others belong to another launch."""
    DTYPE: gl.constexpr = q_ptr.dtype.element_ty
    TILE: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, D], DTYPE)
    BARS: gl.constexpr = mbarrier.MBarrierLayout()
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
    rings = (k_ring, v_ring)
    bars = (k_full, k_empty, v_full, v_empty)
    lists = (tables_ptr, starts_ptr, contexts_ptr)
    FIRST: gl.constexpr = 0
    SECOND: gl.constexpr = 1
    THIRD: gl.constexpr = 2
    gl.warp_specialize([
        (_attend, (q_ptr, out_ptr, scale, q_stride, queries, rings, bars, lists, table_stride,
                   rows, FIRST, G, HKV, LEAST, MOST)),
        (_attend, (q_ptr, out_ptr, scale, q_stride, queries, rings, bars, lists, table_stride,
                   rows, SECOND, G, HKV, LEAST, MOST)),
        (_attend, (q_ptr, out_ptr, scale, q_stride, queries, rings, bars, lists, table_stride,
                   rows, THIRD, G, HKV, LEAST, MOST)),
        (_load, ((k_box, v_box), rings, bars, lists, table_stride, rows, G, HKV, BS, LEAST, MOST)),
    ], [4, 4, 1], [_GROUP, _GROUP, _LOADER])  # fmt: skip


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    context_lens: Tensor,
    out: Tensor,
    scale: float,
    launch: PrefillLaunch,
    pdl: bool,
) -> None:
    """As `hopper_prefill.attend`."""
    tokens, q_heads, dim = q.shape
    rows = context_lens.shape[0]
    _, kv_heads, block_size, _ = k_cache.shape
    shape, group = launch.tiles, q_heads // kv_heads
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    _hopper_groups_kernel[(kv_heads, num_tiles(tokens, rows, group, shape, launch.groups))](
        q, box(k_cache, shape.keys), box(v_cache, shape.keys), block_tables, query_start_loc,
        context_lens, out, scale * _LOG2E, q.stride(0), block_tables.stride(0), rows,
        G=group, HKV=kv_heads, D=dim, BS=block_size, BN=shape.keys,
        LEAST=launch.least, MOST=launch.most, STAGES=STAGES, PDL=pdl,
        num_warps=4, maxnreg=_START, **options,
    )  # fmt: skip
