"""A row's threshold found exactly: bisection on integer keys of the same order as the values.

Invariant: weights are summed as integers (ids counted, or probabilities in fixed point), so the
order of a sum cannot matter, and both searches find the same key where they see the same values.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def row_slice(logits_ptr, row, part, scale, vocab, SLICE: tl.constexpr):
    """One slice of a row, over temperature; -inf past the vocabulary, and NaN as +inf: it is kept,
    so that whoever samples sees it."""
    ids = part * SLICE + tl.arange(0, SLICE)
    x = tl.load(logits_ptr + row * vocab + ids, mask=ids < vocab, other=-float("inf"))
    return ids, tl.where(x == x, x, float("inf")) * scale


@triton.jit
def key_of(x):
    """fp32 as int64 of the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def value_of(key):
    """The inverse of `key_of`."""
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def fixed(x, top, FIXED_POINT: tl.constexpr):
    """exp(x - top) in fixed point."""
    return (tl.exp(x - top) * FIXED_POINT).to(tl.int64)


@triton.jit
def weight_of_row(
    logits_ptr, row, scale, vocab, key, top, MASS: tl.constexpr, SLICE: tl.constexpr,
    FIXED_POINT: tl.constexpr,
):  # fmt: skip
    """The weight of all of a row's values whose key is at least `key`."""
    total = tl.zeros((SLICE,), tl.int64)
    for part in range(tl.cdiv(vocab, SLICE)):
        ids, x = row_slice(logits_ptr, row, part, scale, vocab, SLICE)
        taken = (key_of(x) >= key) & (ids < vocab)
        if MASS:
            total += tl.where(taken, fixed(x, top, FIXED_POINT), 0)
        else:
            total += taken.to(tl.int64)
    return tl.sum(total, 0)


@triton.jit
def search_row(
    logits_ptr, row, scale, vocab, top, target, low, high, MASS: tl.constexpr,
    SLICE: tl.constexpr, FIXED_POINT: tl.constexpr,
):  # fmt: skip
    """The largest key in [low, high) whose weight in the row is at least target; low is one."""
    while high - low > 1:
        middle = (low + high) >> 1
        weight = weight_of_row(logits_ptr, row, scale, vocab, middle, top, MASS, SLICE, FIXED_POINT)
        if weight >= target:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def search_list(keys, weights, above, target, low, high):
    """The same over gathered values; above: the weight of what is larger than all of them."""
    while high - low > 1:
        middle = (low + high) >> 1
        weight = above + tl.sum(tl.where(keys >= middle, weights, 0), 0)
        if weight >= target:
            low = middle
        else:
            high = middle
    return low
