"""Prefill attention for sm_90, its matrix instructions asynchronous.

Invariant: the arguments, the tiles and the order of sums of prefill.py's kernel, and its bits: each
query's tiles of keys in turn, the running maximum, weights and sum scaled to it at every tile, the
sum over a tile's weights and the products in one order. prefill.py's kernel is the twin to compare
with; `prefill_launch.for_hopper` says which launches come here.

Triton waits for each product before it begins another. Here, in Gluon, the level below, the product
of a tile's weights with its values and that of the next tile's keys are in flight together, and
tiles that the diagonal or the end cuts come like the others. The assembler puts the arithmetic of
the softmax behind both: what it runs beside are the products of the SM's other program. To force
part of it before the wait was tried, and took longer.

Keys and values come through descriptors (TMA) into rings of STAGES tiles. Who owns a place:

    tile j of keys     the copy, until its barrier's phase j // STAGES; then the product with q,
                       until it is waited for; then the copy of tile j + STAGES
    tile j of values   alike, with the product of the weights

Source: FlashAttention-3 (Shah et al., 2024), the order of products within a warpgroup.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

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

from quire.kernels.attention.prefill_launch import PrefillLaunch, num_tiles

STAGES = 2  # tiles of keys, and of values, in shared memory
_LOG2E = 1.4426950408889634


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
def fetch(boxes, block, j, n, h, ring, bars, HKV: gl.constexpr, BS: gl.constexpr):
    """Begin to copy tile j of n, which lies in `block`, into its place of the ring."""
    STAGES: gl.constexpr = ring.shape[0]
    BN: gl.constexpr = ring.shape[1]
    bar = bars.index(j % STAGES)
    mbarrier.expect(bar, BN * ring.shape[2] * 2, pred=j < n)
    first = (block * HKV + h) * BS + (j * BN) % BS
    tma.async_copy_global_to_shared(boxes, [first, 0], bar, ring.index(j % STAGES), pred=j < n)


@gluon.jit
def _weigh(s, m, total, scale):
    """A tile's weights, by what was summed before is scaled, and the new maximum and sum."""
    top = gl.maximum(m, gl.max(s, 1) * scale)
    p = gl.exp2(s * scale - top[:, None])
    old = gl.exp2(m - top)
    return p, old, top, total * old + gl.sum(p, 1)


@gluon.jit
def _walk(
    begin, stop, n, q, p, acc, m, total, block, last, scale, h, table_ptr,
    k_box, v_box, k_ring, v_ring, k_bars, v_bars,
    HKV: gl.constexpr, BS: gl.constexpr, S_LAYOUT: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """For tiles [begin, stop): their product with the values, and the weights of the next one.
    p: of tile `begin`. block: of the values that are copied next. MASKED: whether some query does
    not see all of the tiles after these."""
    STAGES: gl.constexpr = k_ring.shape[0]
    BN: gl.constexpr = k_ring.shape[1]
    rn = gl.arange(0, BN, layout=gl.SliceLayout(0, S_LAYOUT))
    none = gl.zeros_like(p)
    for j in range(begin, stop):
        after = j + 1
        following = gl.load(table_ptr + gl.minimum(after + STAGES, n - 1) * BN // BS)
        weights = gl.convert_layout(p.to(q.dtype), gl.DotOperandLayout(0, acc.type.layout, 2))
        mbarrier.wait(k_bars.index(after % STAGES), (after // STAGES) & 1)
        keys = k_ring.index(after % STAGES).permute((1, 0))
        s = warpgroup_mma(q, keys, none, use_acc=False, is_async=True)
        mbarrier.wait(v_bars.index(j % STAGES), (j // STAGES) & 1)
        acc = warpgroup_mma(weights, v_ring.index(j % STAGES), acc, is_async=True)
        s = warpgroup_mma_wait(1, deps=[s])
        if MASKED:
            s = gl.where((after * BN + rn)[None, :] <= last[:, None], s, -float("inf"))
        p, old, m, total = _weigh(s, m, total, scale)
        acc = warpgroup_mma_wait(0, deps=[acc])
        acc = acc * gl.convert_layout(old, gl.SliceLayout(1, acc.type.layout))[:, None]
        fetch(v_box, block, j + STAGES, n, h, v_ring, v_bars, HKV, BS)
        block = following
        fetch(k_box, block, after + STAGES, n, h, k_ring, k_bars, HKV, BS)
    return p, acc, m, total, block


@gluon.jit
def clear_behind(tile, seen, WARPS: gl.constexpr):
    """Zero the rows of a tile from `seen` on: what lies behind the context may be anything."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [WARPS, 1], [1, 0])
    rows = gl.arange(0, tile.shape[0], layout=gl.SliceLayout(1, layout))
    held = tile.load(layout)
    tile.store(gl.where((rows < seen)[:, None], held, gl.zeros_like(held)))
    fence_async_shared()


@gluon.jit(
    do_not_specialize=["q_stride", "table_stride", "rows"],
    do_not_specialize_on_alignment=["tables_ptr", "starts_ptr", "contexts_ptr"],
)
def _hopper_prefill_kernel(
    q_ptr, k_box, v_box, tables_ptr, starts_ptr, contexts_ptr, out_ptr, scale, q_stride,
    table_stride, rows,
    G: gl.constexpr, HKV: gl.constexpr, D: gl.constexpr, BS: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, LEAST: gl.constexpr, MOST: gl.constexpr,
    STAGES: gl.constexpr, WARPS: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """grid (HKV, tiles): rows of LEAST to MOST new tokens; others belong to another launch."""
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BN, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, D, 16])
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [WARPS, 1], [1, 0])
    DTYPE: gl.constexpr = q_ptr.dtype.element_ty
    TILE: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BN, D], DTYPE)
    QT: gl.constexpr = BM // G  # tokens a tile
    h = gl.program_id(0)
    tile = gl.num_programs(1) - 1 - gl.program_id(1)
    if PDL:
        gdc_wait()
    row = find_row(starts_ptr, tile, rows, QT, WARPS)
    start = gl.load(starts_ptr + row).to(gl.int32)
    new = gl.load(starts_ptr + row + 1).to(gl.int32) - start
    context = gl.load(contexts_ptr + row).to(gl.int32)
    token = (tile - (start // QT + row)) * QT
    prefix = context - new
    end = prefix + gl.minimum(token + QT, new)
    if (token < new) & (new >= LEAST) & (new <= MOST):
        table = tables_ptr + row.to(gl.int64) * table_stride
        n = gl.cdiv(end, BN)
        k_ring = gl.allocate_shared_memory(DTYPE, [STAGES, BN, D], TILE)
        v_ring = gl.allocate_shared_memory(DTYPE, [STAGES, BN, D], TILE)
        k_bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        v_bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        for i in gl.static_range(STAGES):
            mbarrier.init(k_bars.index(i), count=1)
            mbarrier.init(v_bars.index(i), count=1)
        fence_async_shared()
        for i in gl.static_range(STAGES):
            block = gl.load(table + gl.minimum(i, n - 1) * BN // BS)
            fetch(k_box, block, i, n, h, k_ring, k_bars, HKV, BS)
            fetch(v_box, block, i, n, h, v_ring, v_bars, HKV, BS)
        block = gl.load(table + gl.minimum(STAGES, n - 1) * BN // BS)

        rm = gl.arange(0, BM, layout=gl.SliceLayout(1, ROWS))
        rd = gl.arange(0, D, layout=gl.SliceLayout(0, ROWS))
        mine = token + rm // G
        ok = ((rm < QT * G) & (mine < new))[:, None]
        where = (start + mine).to(gl.int64)[:, None]
        inside = (h * G + rm % G)[:, None] * D + rd[None, :]
        q_stride = gl.multiple_of(q_stride, 8)
        q = gl.load(q_ptr + where * q_stride + inside, mask=ok, other=0.0)
        q = gl.convert_layout(q, gl.DotOperandLayout(0, S_LAYOUT, 2))
        # Padded tile rows see what the last real one sees, so that no maximum stays at -inf.
        rows_of_s = gl.arange(0, BM, layout=gl.SliceLayout(1, S_LAYOUT))
        last = prefix + gl.minimum(token + rows_of_s // G, new - 1)
        m = gl.full([BM], -float("inf"), gl.float32, layout=gl.SliceLayout(1, S_LAYOUT))
        total = gl.zeros([BM], gl.float32, layout=gl.SliceLayout(1, S_LAYOUT))
        acc = gl.zeros([BM, D], gl.float32, layout=O_LAYOUT)

        mbarrier.wait(k_bars.index(0), 0)
        none = gl.zeros([BM, BN], gl.float32, layout=S_LAYOUT)
        s = warpgroup_mma(q, k_ring.index(0).permute((1, 0)), none, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        fetch(k_box, block, STAGES, n, h, k_ring, k_bars, HKV, BS)
        rn = gl.arange(0, BN, layout=gl.SliceLayout(0, S_LAYOUT))
        s = gl.where(rn[None, :] <= last[:, None], s, -float("inf"))
        p, _old, m, total = _weigh(s, m, total, scale)
        # Tiles that every query sees whole, then those that the diagonal or the end cuts.
        whole = gl.maximum((prefix + token + 1) // BN - 1, 0)
        p, acc, m, total, block = _walk(
            0, whole, n, q, p, acc, m, total, block, last, scale, h, table, k_box, v_box,
            k_ring, v_ring, k_bars, v_bars, HKV, BS, S_LAYOUT, False,
        )  # fmt: skip
        p, acc, m, total, block = _walk(
            whole, n - 1, n, q, p, acc, m, total, block, last, scale, h, table, k_box, v_box,
            k_ring, v_ring, k_bars, v_bars, HKV, BS, S_LAYOUT, True,
        )  # fmt: skip
        final = n - 1
        mbarrier.wait(v_bars.index(final % STAGES), (final // STAGES) & 1)
        values = v_ring.index(final % STAGES)
        if n * BN > context:
            clear_behind(values, context - final * BN, WARPS)
        weights = gl.convert_layout(p.to(DTYPE), gl.DotOperandLayout(0, O_LAYOUT, 2))
        acc = warpgroup_mma(weights, values, acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
        acc = acc / gl.convert_layout(total, gl.SliceLayout(1, O_LAYOUT))[:, None]
        out = out_ptr + where * (HKV * G * D) + inside
        gl.store(out, gl.convert_layout(acc.to(DTYPE), ROWS), mask=ok)
    if PDL:
        gdc_launch_dependents()


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
    """One launch of `prefill.prefill_attention`, whose arguments these are. q: heads side by
    side."""
    tokens, q_heads, dim = q.shape
    rows = context_lens.shape[0]
    _, kv_heads, block_size, _ = k_cache.shape
    shape, group = launch.tiles, q_heads // kv_heads
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    _hopper_prefill_kernel[(kv_heads, num_tiles(tokens, rows, group, shape))](
        q, box(k_cache, shape.keys), box(v_cache, shape.keys), block_tables, query_start_loc,
        context_lens, out, scale * _LOG2E, q.stride(0), block_tables.stride(0), rows,
        G=group, HKV=kv_heads, D=dim, BS=block_size, BM=shape.queries, BN=shape.keys,
        LEAST=launch.least, MOST=launch.most, STAGES=STAGES, WARPS=shape.num_warps, PDL=pdl,
        num_warps=shape.num_warps, **options,
    )  # fmt: skip


def box(cache: Tensor, keys: int) -> TensorDescriptor:
    """A descriptor of a cache [blocks, Hkv, block_size, D] as rows of D, read `keys` at a time."""
    blocks, heads, size, dim = cache.shape
    dtype = gl.bfloat16 if cache.dtype == torch.bfloat16 else gl.float16
    layout = gl.NVMMASharedLayout.get_default_for([keys, dim], dtype)
    return TensorDescriptor(cache, [blocks * heads * size, dim], [dim, 1], [keys, dim], layout)
