"""Top-k, top-p and min-p without a sort: a search for the lowest value that a row keeps.

Invariant: both filters ask the same question, "the largest v such that the weight of all x >= v is
at least the target", where an id weighs 1 (top-k, target k) or its probability (top-p, target p).
Two passes of sixteen thresholds each narrow the answer to an interval of 1/6 nat; its values, few,
are gathered; one program a row then finds v exactly, by bisection on order-preserving integer keys.
Where the interval holds too many values (long runs of equals, or a large top-k with top-p), the
bisection runs over the whole row: slower, and as exact.

Kept sets are those of `reference.filter_logits`: top-k's to the id, top-p's up to the rounding of
probabilities. Sums over gathered values are taken in fixed point, so their order cannot matter, and
a row's result does not depend on its batch mates. Rows without a filter cost an empty program.

Source of the idea: threshold search by counting, as in radix select.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.sampling.row_search import (
    fixed,
    key_of,
    row_slice,
    search_list,
    search_row,
    value_of,
    weight_of_row,
)

SLICE = 4096  # logits of one row that one program reads
STEPS = 16  # thresholds of one narrowing pass
RANGE = 40.0  # nats below the best that the first pass covers; beyond, the whole row is searched
GATHERED = 4096  # values of a row that the exact search holds in registers
FIXED_POINT = 2.0**40  # probabilities (of the best = 1) as integers


@triton.jit
def _settings(
    slots_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab
):  # fmt: skip
    """A row's (1 / temperature, k, p, min_p, filters by k, filters by p)."""
    slot = tl.load(slots_ptr + row).to(tl.int64)
    temperature = tl.load(temperature_ptr + slot)
    scale = tl.div_rn(1.0, tl.where(temperature > 0, temperature, 1.0))
    k = tl.load(top_k_ptr + slot)
    p = tl.load(top_p_ptr + slot)
    return scale, k, p, tl.load(min_p_ptr + slot), (k > 0) & (k < vocab), p < 1


@triton.jit
def _totals(maxima_ptr, sums_ptr, row, slices, SLICES: tl.constexpr):
    """A row's best value, and the sum of exp(x - best)."""
    part = tl.arange(0, SLICES)
    at = row * slices + part
    maxima = tl.load(maxima_ptr + at, mask=part < slices, other=-float("inf"))
    sums = tl.load(sums_ptr + at, mask=part < slices, other=0.0)
    top = tl.max(maxima, 0)
    return top, tl.sum(tl.where(sums > 0, sums * tl.exp(maxima - top), 0.0), 0)


@triton.jit
def _choose(
    steps_ptr, weights_ptr, row, slices, target, low, high, above,
    SLICES: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """The threshold under which the target falls: (low, high, weight of all x >= high)."""
    step = tl.arange(0, STEPS)
    part = tl.arange(0, SLICES)
    thresholds = tl.load(steps_ptr + row * STEPS + step)
    at = (row * slices + part)[:, None] * STEPS + step[None, :]
    weights = tl.load(weights_ptr + at, mask=(part < slices)[:, None], other=0.0)
    weight = tl.sum(weights, 0)
    enough = weight >= target
    low = tl.maximum(low, tl.max(tl.where(enough, thresholds, -float("inf")), 0))
    high = tl.min(tl.where(enough, high, thresholds), 0)
    above = tl.max(tl.where(enough, above, weight), 0)
    return low, high, above


@triton.jit
def _stats_kernel(
    logits_ptr,  # [L, V]
    slots_ptr,  # [L]
    temperature_ptr,  # [S], like the three below
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    maxima_ptr,  # [L, slices]
    sums_ptr,  # [L, slices]
    cursor_ptr,  # [L]
    vocab,
    SLICE: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (slices, L): each slice's best value and sum of exp(x - best)."""
    part = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    scale, _k, _p, least, by_count, by_mass = _settings(
        slots_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab
    )
    if by_count | by_mass | (least > 0):
        _ids, x = row_slice(logits_ptr, row, part, scale, vocab, SLICE)
        best = tl.max(x, 0)
        total = tl.sum(tl.where(x > -float("inf"), tl.exp(x - best), 0.0), 0)
        tl.store(maxima_ptr + row * tl.num_programs(0) + part, best)
        tl.store(sums_ptr + row * tl.num_programs(0) + part, total)
        if part == 0:
            tl.store(cursor_ptr + row, 0)


@triton.jit
def _narrow_kernel(
    logits_ptr,  # [L, V]
    slots_ptr,  # [L]
    temperature_ptr,  # [S], like the three below
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    maxima_ptr,  # [L, slices]
    sums_ptr,  # [L, slices]
    old_steps_ptr,  # [L, STEPS], the pass before, read if SECOND
    old_weights_ptr,  # [L, slices, STEPS], likewise
    steps_ptr,  # [L, STEPS], this pass's thresholds, falling
    weights_ptr,  # [L, slices, STEPS], the weight at or above each
    vocab,
    SECOND: tl.constexpr,
    RANGE: tl.constexpr,
    STEPS: tl.constexpr,
    SLICE: tl.constexpr,
    SLICES: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (slices, L): weigh one slice of a row above each of STEPS thresholds."""
    part = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    slices = tl.num_programs(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    scale, k, p, _least, by_count, by_mass = _settings(
        slots_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab
    )
    if by_count | by_mass:
        top, total = _totals(maxima_ptr, sums_ptr, row, slices, SLICES)
        high = top
        low = top - RANGE
        if SECOND:
            target = tl.where(by_count, k.to(tl.float32), p * total)
            low, high, _above = _choose(
                old_steps_ptr, old_weights_ptr, row, slices, target, -float("inf"), top, 0.0,
                SLICES, STEPS,
            )  # fmt: skip
        step = (high - low) * (1.0 / STEPS)
        falling = tl.arange(0, STEPS)
        thresholds = high - step * (falling + 1).to(tl.float32)
        if part == 0:
            tl.store(steps_ptr + row * STEPS + falling, thresholds)
        out = weights_ptr + (row * slices + part) * STEPS
        if tl.load(maxima_ptr + row * slices + part) < tl.min(thresholds, 0):
            tl.store(out + falling, tl.zeros((STEPS,), tl.float32))
        else:
            ids, x = row_slice(logits_ptr, row, part, scale, vocab, SLICE)
            if by_count:
                weight = tl.where(ids < vocab, 1.0, 0.0)
            else:
                weight = tl.exp(x - top)
            for j in tl.static_range(STEPS):
                threshold = tl.sum(tl.where(falling == j, thresholds, 0.0), 0)
                tl.store(out + j, tl.sum(tl.where(x >= threshold, weight, 0.0), 0))


@triton.jit(do_not_specialize=["rows"])
def _gather_kernel(
    logits_ptr,  # [L, V]
    slots_ptr,  # [L]
    temperature_ptr,  # [S], like the three below
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    maxima_ptr,  # [L, slices]
    sums_ptr,  # [L, slices]
    steps_ptr,  # [2, L, STEPS]
    weights_ptr,  # [2, L, slices, STEPS]
    cursor_ptr,  # [L], values gathered, also those for which there was no room
    list_ptr,  # [L, GATHERED]
    vocab,
    rows,
    STEPS: tl.constexpr,
    GATHERED: tl.constexpr,
    SLICE: tl.constexpr,
    SLICES: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (slices, L): gather the values of the interval that holds the answer."""
    part = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    slices = tl.num_programs(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    scale, k, p, _least, by_count, by_mass = _settings(
        slots_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab
    )
    if by_count | by_mass:
        low, high, above, _top, _total = _interval(
            maxima_ptr, sums_ptr, steps_ptr, weights_ptr, row, rows, slices, k, p, by_count,
            by_mass, STEPS, SLICES,
        )  # fmt: skip
        if tl.load(maxima_ptr + row * slices + part) >= low:
            ids, x = row_slice(logits_ptr, row, part, scale, vocab, SLICE)
            below = tl.where(above > 0, high, float("inf"))  # nothing above: no upper end
            taken = (ids < vocab) & (x >= low) & (x < below)
            counted = taken.to(tl.int32)
            start = tl.atomic_add(cursor_ptr + row, tl.sum(counted, 0), sem="relaxed")
            place = start + tl.cumsum(counted, 0) - 1
            tl.store(list_ptr + row * GATHERED + place, x, mask=taken & (place < GATHERED))


@triton.jit
def _interval(
    maxima_ptr, sums_ptr, steps_ptr, weights_ptr, row, rows, slices, k, p, by_count, by_mass,
    STEPS: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """(low, high, weight above high, best value, sum of exp(x - best)) after both passes.

    With top-k and top-p, all that top-k keeps must be gathered: then nothing lies above.
    """
    top, total = _totals(maxima_ptr, sums_ptr, row, slices, SLICES)
    target = tl.where(by_count, k.to(tl.float32), p * total)
    low, high, above = _choose(
        steps_ptr, weights_ptr, row, slices, target, -float("inf"), top, 0.0, SLICES, STEPS
    )
    low, high, above = _choose(
        steps_ptr + rows.to(tl.int64) * STEPS,
        weights_ptr + rows.to(tl.int64) * slices * STEPS,
        row, slices, target, low, high, above, SLICES, STEPS,
    )  # fmt: skip
    both = by_count & by_mass
    return low, high, tl.where(both, 0.0, above), top, total


@triton.jit(do_not_specialize=["rows"])
def _finish_kernel(
    logits_ptr,  # [L, V]
    slots_ptr,  # [L]
    temperature_ptr,  # [S], like the three below
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    maxima_ptr,  # [L, slices]
    sums_ptr,  # [L, slices]
    steps_ptr,  # [2, L, STEPS]
    weights_ptr,  # [2, L, slices, STEPS]
    cursor_ptr,  # [L]
    list_ptr,  # [L, GATHERED]
    threshold_ptr,  # [L], the lowest value kept
    vocab,
    rows,
    slices,
    STEPS: tl.constexpr,
    GATHERED: tl.constexpr,
    FIXED_POINT: tl.constexpr,
    SLICE: tl.constexpr,
    SLICES: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (L,): find a row's threshold exactly."""
    row = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    scale, k, p, least, by_count, by_mass = _settings(
        slots_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab
    )
    threshold = -float("inf")
    if by_count | by_mass:
        low, _high, above, top, total = _interval(
            maxima_ptr, sums_ptr, steps_ptr, weights_ptr, row, rows, slices, k, p, by_count,
            by_mass, STEPS, SLICES,
        )  # fmt: skip
        count = tl.load(cursor_ptr + row)
        end = key_of(top) + 1
        if count <= GATHERED:
            lane = tl.arange(0, GATHERED)
            valid = lane < count
            x = tl.load(list_ptr + row * GATHERED + lane, mask=valid, other=-float("inf"))
            keys = key_of(x)
            ones = valid.to(tl.int64)
            mass = tl.where(valid, fixed(x, top, FIXED_POINT), 0)
            key = tl.min(tl.where(valid, keys, end - 1), 0)
            if by_count:
                key = search_list(keys, ones, above.to(tl.int64), k.to(tl.int64), key, end)
                total = tl.sum(tl.where(keys >= key, mass, 0), 0).to(tl.float32) / FIXED_POINT
            if by_mass:
                target = (p * total * FIXED_POINT).to(tl.int64)
                higher = (above * FIXED_POINT).to(tl.int64)
                key = search_list(keys, mass, higher, target, key, end)
        else:
            key = key_of(low)
            if by_count:
                key = search_row(
                    logits_ptr, row, scale, vocab, top, k.to(tl.int64), key, end, False, SLICE,
                    FIXED_POINT,
                )  # fmt: skip
                weight = weight_of_row(
                    logits_ptr, row, scale, vocab, key, top, True, SLICE, FIXED_POINT
                )
                total = weight.to(tl.float32) / FIXED_POINT
            if by_mass:
                target = (p * total * FIXED_POINT).to(tl.int64)
                key = search_row(
                    logits_ptr, row, scale, vocab, top, target, key, end, True, SLICE, FIXED_POINT
                )
        threshold = value_of(key)
    if least > 0:
        best, _total = _totals(maxima_ptr, sums_ptr, row, slices, SLICES)
        threshold = tl.maximum(threshold, best + tl.log(least))
    tl.store(threshold_ptr + row, threshold)


@triton.jit
def _apply_kernel(
    logits_ptr,  # [L, V], changed
    slots_ptr,  # [L]
    temperature_ptr,  # [S]
    threshold_ptr,  # [L]
    maxima_ptr,  # [L, slices]
    vocab,
    SLICE: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (slices, L): what lies under the row's threshold becomes -inf."""
    part = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    threshold = tl.load(threshold_ptr + row)
    if threshold > -float("inf"):
        slot = tl.load(slots_ptr + row).to(tl.int64)
        temperature = tl.load(temperature_ptr + slot)
        scale = tl.div_rn(1.0, tl.where(temperature > 0, temperature, 1.0))
        ids = part * SLICE + tl.arange(0, SLICE)
        removed = ids < vocab
        if tl.load(maxima_ptr + row * tl.num_programs(0) + part) >= threshold:
            _ids, x = row_slice(logits_ptr, row, part, scale, vocab, SLICE)
            removed = removed & (x < threshold)
        gone = tl.full((SLICE,), -float("inf"), tl.float32)
        tl.store(logits_ptr + row * vocab + ids, gone, mask=removed)


def filter_logits(
    logits: Tensor,
    slots: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    *,
    pdl: bool = False,
) -> None:
    """Top-k, then top-p, then min-p, in place. logits: [L, V]. See `reference.filter_logits`."""
    rows, vocab = logits.shape
    if not rows:
        return
    slices = triton.cdiv(vocab, SLICE)
    grid = (slices, rows)
    settings = (logits, slots, temperature, top_k, top_p, min_p)

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    maxima, sums, threshold = new(rows, slices), new(rows, slices), new(rows)
    thresholds, weights = new(2, rows, STEPS), new(2, rows, slices, STEPS)
    cursor, gathered = new(rows, dtype=torch.int32), new(rows, GATHERED)
    common = {"SLICE": SLICE, "PDL": pdl, "num_warps": 8, "launch_pdl": pdl}
    across = {"STEPS": STEPS, "SLICES": triton.next_power_of_2(slices)}

    _stats_kernel[grid](*settings, maxima, sums, cursor, vocab, **common)
    for second in (False, True):
        _narrow_kernel[grid](
            *settings, maxima, sums, thresholds[0], weights[0], thresholds[int(second)],
            weights[int(second)], vocab, SECOND=second, RANGE=RANGE, **across, **common,
        )  # fmt: skip
    found = (maxima, sums, thresholds, weights, cursor, gathered)
    _gather_kernel[grid](*settings, *found, vocab, rows, GATHERED=GATHERED, **across, **common)
    _finish_kernel[(rows,)](
        *settings, *found, threshold, vocab, rows, slices, GATHERED=GATHERED,
        FIXED_POINT=FIXED_POINT, **across, **common,
    )  # fmt: skip
    _apply_kernel[grid](logits, slots, temperature, threshold, maxima, vocab, **common)
