"""Exact prefill attention for sm_90: a warp loads while a group of four warps attends.

Invariant: the arguments of exact_prefill.py's kernel and its bits, in bfloat16. That kernel takes
maxima anew in every unit; here they grow along the context, as in hopper_prefill.py. Nothing
depends on it: scores are multiples of 2^-13 and maxima whole (`decode_merge.add_tile`), so what
another maximum scales, it scales by a power of two. That holds for weights down to 2^-100 of a
row's largest, and for maxima above -512, in powers of two.

A unit that is a tile is a product of its own, added to those before it by one instruction an
element, as many as the fast mode takes to scale them; a longer unit's tiles are added by the matrix
units. Loops, rings and their owners are those of hopper_prefill.py, with one group.

Source: FlashAttention-3 (Shah et al., 2024).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.attention.decode_launch import MAX_SPLITS, UNIT
from quire.kernels.attention.hopper_prefill import (
    ALIGNED,
    LOADER,
    ROWS,
    clear_behind,
    find,
    launched,
    load,
    scores,
)
from quire.kernels.attention.prefill_launch import PrefillLaunch

_STAGES = 2  # tiles of keys, and of values, in shared memory: two programs a multiprocessor
_REGISTERS = 128  # a thread, which the warps then divide
_UNIT, _SPLITS = gl.constexpr(UNIT), gl.constexpr(MAX_SPLITS)
_GRID = gl.constexpr(1536.0)  # of decode_merge.add_tile


@gluon.jit
def _exact_unit(n, TILE: gl.constexpr):
    """As decode_merge.exact_unit."""
    many = _UNIT * gl.maximum(gl.cdiv(n, _UNIT * _SPLITS), 1)
    return gl.where(n <= TILE * (_SPLITS // 2), TILE, many)


@gluon.jit
def _halved(p, MOST: gl.constexpr):
    for _ in gl.static_range(3):
        if p.shape[1] > MOST:
            p = gl.sum(p.reshape([p.shape[0], 2, p.shape[1] // 2]), 1)
    return p


@gluon.jit
def _neighbours(p):
    return gl.sum(p.reshape([p.shape[0], p.shape[1] // 2, 2]), 2)


@gluon.jit
def _sum_of_weights(p):
    """As decode_merge.sum_of_weights."""
    p = _neighbours(_halved(p, 32))
    p = _neighbours(_halved(p, 4))
    return gl.sum(p, 1)


@gluon.jit
def _weigh(s, m, scale, DTYPE: gl.constexpr, S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr):
    """A tile's weights, by what was summed before is scaled, the new maximum and the weights'
    sum."""
    x = gl.fma(s, scale, _GRID)
    top = gl.maximum(m, gl.ceil(gl.max(x, 1)))
    p = gl.exp2(x - top[:, None])
    old = gl.exp2(m - top)
    total = gl.convert_layout(_sum_of_weights(p), gl.SliceLayout(1, S_LAYOUT))
    return gl.convert_layout(p.to(DTYPE), gl.DotOperandLayout(0, O_LAYOUT, 2)), old, top, total


@gluon.jit
def _sum(weights, acc, goes_on, j, v_ring, v_full):
    """Begin to add the product of the weights with tile j of values, to nothing where no unit
    `goes_on`."""
    STAGES: gl.constexpr = v_ring.shape[0]
    mbarrier.wait(v_full.index(j % STAGES), (j // STAGES) & 1)
    return warpgroup_mma(weights, v_ring.index(j % STAGES), acc, use_acc=goes_on, is_async=True)


@gluon.jit
def _over(x, O_LAYOUT: gl.constexpr):
    """A number a row, for all columns of the sums."""
    return gl.convert_layout(x, gl.SliceLayout(1, O_LAYOUT))[:, None]


@gluon.jit
def _end_unit(ends, m, total, acc, before, O_LAYOUT: gl.constexpr):
    """Add a unit's sum to those `before` it, in rows where it `ends`."""
    m_before, total_before, acc_before = before
    by = gl.where(ends, gl.exp2(m_before - m), 1.0)
    added = gl.where(ends, 1.0, 0.0)
    total_before = gl.fma(total_before, by, total * added)
    acc_before = gl.fma(acc_before, _over(by, O_LAYOUT), acc * _over(added, O_LAYOUT))
    return gl.where(ends, m, m_before), total_before, acc_before


@gluon.jit
def _add(m, total, acc, before, O_LAYOUT: gl.constexpr):
    """The same where it ends in all rows."""
    m_before, total_before, acc_before = before
    by = gl.exp2(m_before - m)
    total_before = gl.fma(total_before, by, total)
    return m, total_before, gl.fma(acc_before, _over(by, O_LAYOUT), acc)


@gluon.jit
def _walk(
    begin, stop, q, weights, sums, before, units, last, scale, rings, bars,
    S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr, SHORT: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """For tiles [begin, stop): their product with the values, and the weights of the next one.

    weights: of tile `begin`. sums: of the unit at hand, whether it has tiles already, and where the
    units of rows that see the fewest and the most tokens end next; before: of all before it. units:
    those units' tiles. SHORT: all have one.
    MASKED: whether some query does not see all of the tiles after these.
    """
    k_ring, v_ring = rings
    k_full, k_empty, v_full, v_empty = bars
    STAGES: gl.constexpr = k_ring.shape[0]
    BN: gl.constexpr = k_ring.shape[1]
    rn = gl.arange(0, BN, layout=gl.SliceLayout(0, S_LAYOUT))
    m, total, acc, goes_on, edges = sums
    shortest, longest = units
    short_edge, long_edge = edges
    for j in range(begin, stop):
        after = j + 1
        s = scores(q, after, k_ring, k_full, S_LAYOUT)
        if SHORT:
            acc = _sum(weights, acc, False, j, v_ring, v_full)
        else:
            acc = _sum(weights, acc, goes_on, j, v_ring, v_full)
        s = warpgroup_mma_wait(1, deps=[s])
        mbarrier.arrive(k_empty.index(after % STAGES), count=1)
        if MASKED:
            s = gl.where((after * BN + rn)[None, :] <= last[:, None], s, -float("inf"))
        weights, old, top, added = _weigh(s, m, scale, v_ring.dtype, S_LAYOUT, O_LAYOUT)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(v_empty.index(j % STAGES), count=1)
        if SHORT:
            before = _add(m, total, acc, before, O_LAYOUT)
            total = added
        else:
            at_short = after == short_edge
            at_long = after == long_edge
            goes_on = not (at_short & at_long)
            if at_short & at_long:
                before = _add(m, total, acc, before, O_LAYOUT)
                old = gl.zeros_like(old)
            elif at_short | at_long:
                ends = after * BN % _exact_unit(last + 1, BN) == 0
                before = _end_unit(ends, m, total, acc, before, O_LAYOUT)
                old = gl.where(ends, 0.0, old)
                acc = acc * _over(old, O_LAYOUT)
            else:
                acc = acc * _over(old, O_LAYOUT)
            short_edge += gl.where(at_short, shortest, 0)
            long_edge += gl.where(at_long, longest, 0)
            total = gl.fma(total, old, added)
        m = top
    return weights, (m, total, acc, goes_on, (short_edge, long_edge)), before


@gluon.jit
def _walk_all(
    n, whole, q, weights, sums, before, units, last, scale, rings, bars,
    S_LAYOUT: gl.constexpr, O_LAYOUT: gl.constexpr, SHORT: gl.constexpr,
):  # fmt: skip
    """All tiles but the last: those that every query sees whole, then those that the diagonal or
    the end cuts."""
    weights, sums, before = _walk(
        0, whole, q, weights, sums, before, units, last, scale, rings, bars, S_LAYOUT, O_LAYOUT,
        SHORT, False,
    )  # fmt: skip
    return _walk(
        whole, n - 1, q, weights, sums, before, units, last, scale, rings, bars, S_LAYOUT, O_LAYOUT,
        SHORT, True,
    )  # fmt: skip


@gluon.jit
def _attend(
    q_ptr, out_ptr, scale, q_stride, q, rings, bars, new, context, token, n,
    G: gl.constexpr, HKV: gl.constexpr,
):  # fmt: skip
    """The rows of the program's tile, whose first is at q_ptr and out_ptr."""
    k_ring, v_ring = rings
    k_full, k_empty, v_full, _v_empty = bars
    STAGES: gl.constexpr = k_ring.shape[0]
    BN: gl.constexpr = k_ring.shape[1]
    D: gl.constexpr = k_ring.shape[2]
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    DTYPE: gl.constexpr = k_ring.dtype
    QT: gl.constexpr = ROWS // G  # tokens
    prefix = context - new
    if n > 0:
        rm = gl.arange(0, ROWS, layout=gl.SliceLayout(1, WIDE))[:, None]
        rd = gl.arange(0, D, layout=gl.SliceLayout(0, WIDE))[None, :]
        ok = (rm < QT * G) & (token + rm // G >= 0)
        inside = rm % G * D + rd
        q.store(gl.load(q_ptr + (rm // G * q_stride + inside), mask=ok, other=0.0))
        fence_async_shared()
        # Padded tile rows see something too, so that no maximum stays at -inf.
        rows_of_s = gl.arange(0, ROWS, layout=gl.SliceLayout(1, S_LAYOUT))
        first = gl.maximum(token, 0)
        last = prefix + gl.minimum(gl.maximum(token + rows_of_s // G, 0), new - 1)
        longest = _exact_unit(prefix + token + QT, BN)
        units = (_exact_unit(prefix + first + 1, BN) // BN, longest // BN)
        m = gl.full([ROWS], -float("inf"), gl.float32, layout=gl.SliceLayout(1, S_LAYOUT))
        total = gl.zeros([ROWS], gl.float32, layout=gl.SliceLayout(1, S_LAYOUT))
        acc = gl.zeros([ROWS, D], gl.float32, layout=O_LAYOUT)
        before = (m, total, acc)

        s = scores(q, 0, k_ring, k_full, S_LAYOUT)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(k_empty.index(0), count=1)
        rn = gl.arange(0, BN, layout=gl.SliceLayout(0, S_LAYOUT))
        s = gl.where(rn[None, :] <= last[:, None], s, -float("inf"))
        weights, _old, m, total = _weigh(s, m, scale, DTYPE, S_LAYOUT, O_LAYOUT)
        sums = (m, total, acc, False, units)
        whole = gl.maximum((prefix + first + 1) // BN - 1, 0)
        if longest == BN:
            weights, sums, before = _walk_all(
                n, whole, q, weights, sums, before, units, last, scale, rings, bars, S_LAYOUT,
                O_LAYOUT, True,
            )  # fmt: skip
        else:
            weights, sums, before = _walk_all(
                n, whole, q, weights, sums, before, units, last, scale, rings, bars, S_LAYOUT,
                O_LAYOUT, False,
            )  # fmt: skip
        m, total, acc, goes_on, _edges = sums
        final = n - 1
        if n * BN > context:
            mbarrier.wait(v_full.index(final % STAGES), (final // STAGES) & 1)
            clear_behind(v_ring.index(final % STAGES), context - final * BN)
        acc = _sum(weights, acc, goes_on, final, v_ring, v_full)
        acc = warpgroup_mma_wait(0, deps=[acc])
        _m, total, acc = _add(m, total, acc, before, O_LAYOUT)
        acc = acc / _over(total, O_LAYOUT)
        out = gl.convert_layout(acc.to(out_ptr.dtype.element_ty), WIDE)
        gl.store(out_ptr + (rm // G * (HKV * G * D) + inside), out, mask=ok)


@gluon.jit(
    do_not_specialize=["q_units", "table_stride", "rows", "least"],
    do_not_specialize_on_alignment=["tables_ptr", "starts_ptr", "contexts_ptr"],
)
def _hopper_exact_kernel(
    q_ptr, k_box, v_box, tables_ptr, starts_ptr, contexts_ptr, out_ptr, scale, q_units,
    table_stride, rows, least,
    G: gl.constexpr, HKV: gl.constexpr, D: gl.constexpr, BS: gl.constexpr, BN: gl.constexpr,
    MOST: gl.constexpr, STAGES: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """grid (HKV, tiles): rows of least to MOST new tokens; others belong to another launch.
    q_units: of ALIGNED elements from a token to the next."""
    DTYPE: gl.constexpr = q_ptr.dtype.element_ty
    TILE: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, D], DTYPE)
    BARS: gl.constexpr = mbarrier.MBarrierLayout()
    row, start, new, context, token, n = find(
        starts_ptr, contexts_ptr, rows, least, ROWS // G, BN, MOST
    )
    table = tables_ptr + row.to(gl.int64) * table_stride
    block = gl.load(table)
    queries = gl.allocate_shared_memory(DTYPE, [ROWS, D], TILE)
    k_ring = gl.allocate_shared_memory(DTYPE, [STAGES, BN, D], k_box.layout)
    v_ring = gl.allocate_shared_memory(DTYPE, [STAGES, BN, D], v_box.layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARS)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARS)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARS)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARS)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=1)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=1)
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
    gl.warp_specialize([
        (_attend, (q_ptr, out_ptr, scale, q_stride, queries, rings, bars, new, context, token, n,
                   G, HKV)),
        (load, ((k_box, v_box), rings, bars, table, block, n, HKV, BS)),
    ], [1], [LOADER])  # fmt: skip


def attend(*arguments: Any, launch: PrefillLaunch, pdl: bool) -> None:
    """One launch of `exact_prefill.prefill_attention`. arguments: its tensors and scale, as of
    `launched`."""
    launched(
        _hopper_exact_kernel, 1, *arguments, launch=launch, pdl=pdl, STAGES=_STAGES,
        maxnreg=_REGISTERS,
    )  # fmt: skip
