"""The sums that splits of a context give, merged along one tree: decode attention's second half.

    partial [R, Hq, S, D'] fp32        stats [R, Hq, S, 2] fp32 (maximum, sum of weights)

Invariant: tiles are merged into units, units into long splits and those into the whole, each in
index order, whoever does it (see decode.py). A merge with the empty sum is exact.

Sources: Flash-Decoding (Dao et al., 2023); online softmax (Milakov and Gimelshein, 2018).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.fp8_groups import group_scales, quotient

AT_ONCE = 8  # partial results on their way to a program of the merge, at least
TOGETHER = tl.constexpr(2)  # units that are tiles, to a split of exact mode
_PROGRAMS = 512  # wanted of the merge, before one takes several heads


@triton.jit
def least_multiple(n, LENGTH: tl.constexpr, MOST: tl.constexpr):
    """The least multiple of LENGTH that cuts n tokens into MOST pieces or fewer."""
    return LENGTH * tl.maximum(tl.cdiv(n, LENGTH * MOST), 1)


@triton.jit
def exact_unit(n, TILE: tl.constexpr, UNIT: tl.constexpr, SPLITS: tl.constexpr):
    """Tokens of a unit in exact mode: a tile, as long as half of SPLITS hold the context."""
    return tl.where(n <= TILE * (SPLITS // 2), TILE, least_multiple(n, UNIT, SPLITS))


@triton.jit
def split_length(
    n, most,
    TILE: tl.constexpr, UNIT: tl.constexpr, LONG: tl.constexpr, SPLITS: tl.constexpr,
    LEVEL: tl.constexpr,
):  # fmt: skip
    """Tokens of a unit and of a split, for a context of n. Tiles are splits of contexts <= most.
    In exact mode any context is one long split (LONG >= SPLITS), and no unit is cut; a short split
    has several units beyond `most`, where they are tiles."""
    if LONG >= SPLITS:
        unit = exact_unit(n, TILE, UNIT, SPLITS)
    else:
        unit = least_multiple(n, UNIT, SPLITS)
    split = unit
    if LEVEL == 0:
        if LONG >= SPLITS:
            split = tl.maximum(unit, TOGETHER * TILE)
        split = tl.where(n <= most, TILE, split)
    if LEVEL == 2:
        split = unit * LONG
    return unit, split


@triton.jit
def columns(D: tl.constexpr, DP: tl.constexpr):
    """The element of a head that each of DP columns holds, and which columns hold one: a head's
    halves lie side by side, each padded to a power of two, as the rotation leaves them."""
    rd = tl.arange(0, DP)
    inside = rd < D
    if DP != D:
        inside = rd % (DP // 2) < D // 2
        rd = rd // (DP // 2) * (D // 2) + rd % (DP // 2)
    return rd, inside


@triton.jit
def empty_sum(HEADS: tl.constexpr, DP: tl.constexpr):
    """The softmax sum of no tokens: (maximum, sum of weights, weighted values)."""
    m = tl.full((HEADS,), -float("inf"), tl.float32)
    return m, tl.zeros((HEADS,), tl.float32), tl.zeros((HEADS, DP), tl.float32)


@triton.jit
def sum_of_weights(p):
    """[heads, TILE] fp32 -> [heads], along a tree that does not change with the number of warps or
    the layout: two at a time (a sum of two is the same either way round), until one is left."""
    p = _neighbours(_halved(p, 32))
    p = _neighbours(_halved(p, 4))
    return tl.sum(p, 1)


@triton.jit
def _halved(p, MOST: tl.constexpr):
    for _ in tl.static_range(3):
        if p.shape[1] > MOST:
            p = tl.sum(tl.reshape(p, [p.shape[0], 2, p.shape[1] // 2]), 1)
    return p


@triton.jit
def _neighbours(p):
    return tl.sum(tl.reshape(p, [p.shape[0], p.shape[1] // 2, 2]), 2)


@triton.jit
def add_tile(m, total, acc, s, v, scale, PRECISION: tl.constexpr):
    """A unit's sum and one tile more, of which s [heads, TILE] are the scores, in exact mode.

    In bfloat16 scores are rounded to multiples of 2^-13, by the sum with 1536, and maxima are
    whole: so under another maximum all is another power of two times as large, and no bit differs.
    """
    NARROW: tl.constexpr = v.dtype == tl.bfloat16
    x = tl.fma(s, scale, 1536.0 if NARROW else 0.0)
    top = tl.max(x, 1)
    if NARROW:
        top = tl.ceil(top)
    top = tl.maximum(m, top)
    base = tl.where(top == -float("inf"), 0.0, top)  # nothing is seen yet: an empty sum, not NaN
    p = tl.exp2(x - base[:, None])
    old = tl.exp2(m - base)
    total = tl.fma(total, old, sum_of_weights(p))
    acc = tl.dot(p.to(v.dtype), v, acc * old[:, None], input_precision=PRECISION)
    return top, total, acc


@triton.jit
def merge(m, total, acc, m_new, total_new, acc_new):
    """Two softmax sums, the earlier tokens first. Exact where either of them is empty.

    A sum whose maximum is -inf counts as empty, whatever else it holds."""
    top = tl.maximum(m, m_new)
    finite = tl.where(top == -float("inf"), 0.0, top)  # two empty sums make an empty one, not NaN
    old = tl.exp2(m - finite)
    new = tl.exp2(m_new - finite)
    total = tl.fma(total, old, total_new * new)
    acc = tl.fma(acc, tl.broadcast_to(old[:, None], acc.shape), acc_new * new[:, None])
    return top, total, acc


@triton.jit
def store_part(partial_ptr, stats_ptr, part, real, m, total, acc):
    """Leave a sum of several heads as their `part` [heads], where real."""
    at = partial_ptr + part[:, None] * acc.shape[1] + tl.arange(0, acc.shape[1])[None, :]
    tl.store(at, acc, mask=real[:, None])
    tl.store(stats_ptr + part * 2, m, mask=real)
    tl.store(stats_ptr + part * 2 + 1, total, mask=real)


@triton.jit
def _load_partial(partial_ptr, stats_ptr, part, ok, DP: tl.constexpr):
    """Partial results of several heads, [HP] each; where not ok, the empty sum."""
    at = stats_ptr + part * 2  # past the first cache: other programs have just written these
    m = tl.load(at, mask=ok, other=-float("inf"), cache_modifier=".cg")
    total = tl.load(at + 1, mask=ok, other=0.0, cache_modifier=".cg")
    at = partial_ptr + part[:, None] * DP + tl.arange(0, DP)[None, :]
    return m, total, tl.load(at, mask=ok, other=0.0, cache_modifier=".cg")


@triton.jit
def merged(
    partial_ptr, stats_ptr, first, count,
    INNER: tl.constexpr, AT_ONCE: tl.constexpr, HP: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """The sum of `count` parts of each of HP heads: INNER at a time in order, then those in order.

    first: [HP], where a head's parts begin. AT_ONCE groups of INNER are unrolled, to overlap loads.
    """
    m, total, acc = empty_sum(HP, DP)
    for group in range(0, count, INNER * AT_ONCE):
        for i in tl.static_range(AT_ONCE):
            m_i, total_i, acc_i = empty_sum(HP, DP)
            for j in tl.static_range(INNER):
                part = group + i * INNER + j
                m_j, total_j, acc_j = _load_partial(
                    partial_ptr, stats_ptr, first + part, part < count, DP
                )
                m_i, total_i, acc_i = merge(m_i, total_i, acc_i, m_j, total_j, acc_j)
            m, total, acc = merge(m, total, acc, m_i, total_i, acc_i)
    return total, acc


@triton.jit
def store_heads(
    out_ptr, scales_ptr, stride, heads, real, total, acc,
    HQ: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Results of heads, counted over all rows, where real. scales_ptr: None, or they are rounded to
    bfloat16 and quantized, a group a head (D = 128), whose scales lie `stride` apart."""
    rd, inside = columns(D, DP)
    y = acc / total[:, None]
    if scales_ptr is not None:
        y = y.to(tl.bfloat16).to(tl.float32)
        scale = group_scales(y)
        y = quotient(y, scale)
        tl.store(scales_ptr + heads // HQ + heads % HQ * stride, scale, mask=real)
    at = out_ptr + heads[:, None] * D + rd[None, :]
    tl.store(at, y.to(out_ptr.dtype.element_ty), mask=real[:, None] & inside[None, :])


@triton.jit
def merge_long_splits(
    partial_ptr, stats_ptr, out_ptr, scales_ptr, stride, index, count, S,
    G: tl.constexpr, HQ: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Merge the parts of each head of a row and kv head, of which `index` is the first."""
    HP: tl.constexpr = 1 if G == 1 else 2 if G == 2 else 4
    for g in range(0, G, HP):
        # Past the last head the last one again: it writes what is written there anyway.
        heads = index + tl.minimum(g + tl.arange(0, HP), G - 1)
        total, acc = merged(partial_ptr, stats_ptr, heads * S, count, 1, 1, HP, DP)
        store_heads(out_ptr, scales_ptr, stride, heads, heads >= 0, total, acc, HQ, D, DP)


@triton.jit(do_not_specialize=["S", "most"], do_not_specialize_on_alignment=["contexts_ptr"])
def _merge_kernel(
    contexts_ptr, out_ptr, partial_ptr, stats_ptr, S, most,
    HQ: tl.constexpr, HP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, TILE: tl.constexpr,
    UNIT: tl.constexpr, LONG: tl.constexpr, SPLITS: tl.constexpr, LEVEL: tl.constexpr,
    AT_ONCE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """grid (HQ / HP, R): merge the tiles or units of HP heads of one row; often there are none."""
    row = tl.program_id(1)
    n = tl.load(contexts_ptr + row).to(tl.int32)  # of this step already (see decode.py)
    unit, split = split_length(n, most, TILE, UNIT, LONG, SPLITS, LEVEL)
    if LONG >= SPLITS:  # whatever a program took, it has left units
        split = unit
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    if n > split:
        count = tl.cdiv(n, split)
        # Past the last head the last one again: it writes what is written there anyway.
        rh = tl.minimum(tl.program_id(0) * HP + tl.arange(0, HP), HQ - 1)
        heads = row.to(tl.int64) * HQ + rh
        first = heads * S
        if LONG >= SPLITS:  # any context is one long split: its units in order
            total, acc = merged(partial_ptr, stats_ptr, first, count, 1, AT_ONCE, HP, DP)
        elif LEVEL == 0 and split == TILE:
            # One long split at most: its units are all there is to merge, whether it is one or not.
            INNER: tl.constexpr = UNIT // TILE
            ONCE: tl.constexpr = (AT_ONCE + INNER - 1) // INNER
            total, acc = merged(partial_ptr, stats_ptr, first, count, INNER, ONCE, HP, DP)
        else:
            total, acc = merged(partial_ptr, stats_ptr, first, count, LONG, 1, HP, DP)
        store_heads(out_ptr, None, 0, heads, heads >= 0, total, acc, HQ, D, DP)


def merge_shape(rows: int, q_heads: int) -> tuple[int, int]:
    """Heads a program of the merge (a power of two), and its warps."""
    heads = 1
    while heads < min(8, q_heads) and rows * q_heads > heads * _PROGRAMS:
        heads *= 2
    return heads, min(heads, 4)


def merge_splits(
    context_lens: Tensor,
    out: Tensor,
    partial: Tensor,
    stats: Tensor,
    splits: int,
    most: int,
    **launch: Any,
) -> None:
    """Finish out [R, Hq, D] for the rows of several tiles or units each. launch: as of the kernel
    that summed them."""
    rows, q_heads, _ = out.shape
    heads, warps = merge_shape(rows, q_heads)
    _merge_kernel[(-(-q_heads // heads), rows)](
        context_lens, out, partial, stats, splits, most, HQ=q_heads, HP=heads, AT_ONCE=AT_ONCE,
        num_warps=warps, **launch,
    )  # fmt: skip
