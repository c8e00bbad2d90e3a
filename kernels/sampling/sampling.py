"""From logits to tokens: penalties, forbidden stop ids, greedy and Gumbel-max sampling.

Invariant: a token is a pure function of its row: logits, temperature, seed and position. Noise is
a hash of (seed, position, vocabulary id), so batch mates, graphs and replays change nothing. Ties
go to the lowest id. Rows are cut into slices at fixed columns, one program each; the slices' best
are compared in a second kernel.

A row of logits that holds NaN or +inf, or nothing but -inf, has no token: its id is -1.

logits: [L, V] fp32, contiguous. Filtering (top-k, top-p, min-p) stands in filtering.py.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

SLICE = 4096  # logits of one row that one program reads


@triton.jit
def _mix(x):
    """A bijective hash of 32 bits (constants found by Wellons, `lowbias32`)."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def _log_exponential(ids, seed, position):
    """log of Exponential(1) noise for vocabulary ids; the twin is `reference.exponential_noise`."""
    low = (seed & 0xFFFFFFFF).to(tl.uint32)
    high = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    first = _mix(low ^ _mix(position.to(tl.uint32) + 0x1E3779B9))
    second = _mix(high ^ _mix(first + 0x05EBCA6B))
    x = _mix(_mix(ids.to(tl.uint32) ^ first) ^ second) & 0x7FFFFFFF
    u = (x.to(tl.int32).to(tl.float32) + 0.5) * (2.0**-31)
    u = tl.minimum(u, 1 - 2.0**-24)
    # -log(1 - u): a series where 1 - u would lose u's digits.
    series = u * (1 + u * (0.5 + u * (1 / 3 + u * (0.25 + u * (0.2 + u * (1 / 6))))))
    return tl.log(tl.where(u < 0.0625, series, -tl.log(1.0 - u)))


@triton.jit(do_not_specialize=["first"])
def _best_of_slice(
    logits_ptr,  # [L, V]
    values_ptr,  # [L, slices] fp32
    ids_ptr,  # [L, slices] int32
    slots_ptr,  # [L], read if NOISE, like the three below
    positions_ptr,  # [L]
    temperature_ptr,  # [S]
    seeds_ptr,  # [S]
    vocab,
    first,
    NOISE: tl.constexpr,
    SLICE: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (slices, L): the best id of one slice, the lowest where several are best. first: the id
    of the first logit."""
    part = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    ids = part * SLICE + tl.arange(0, SLICE)
    inside = ids < vocab
    x = tl.load(logits_ptr + row * vocab + ids, mask=inside, other=-float("inf"))
    x = tl.where(x == x, x, float("inf"))  # NaN wins, and is recognised below
    if NOISE:
        slot = tl.load(slots_ptr + row).to(tl.int64)
        temperature = tl.load(temperature_ptr + slot)
        if temperature > 0:
            noise = _log_exponential(
                first + ids, tl.load(seeds_ptr + slot), tl.load(positions_ptr + row)
            )
            x = tl.where(inside, x * tl.div_rn(1.0, temperature) - noise, -float("inf"))
    best, at = tl.max(x, 0, return_indices=True)
    tl.store(values_ptr + row * tl.num_programs(0) + part, best)
    tl.store(
        ids_ptr + row * tl.num_programs(0) + part, first + tl.minimum(part * SLICE + at, vocab - 1)
    )


@triton.jit
def _best_of_row(
    values_ptr,  # [L, slices]
    ids_ptr,  # [L, slices]
    out_ptr,  # [L] int64
    slices,
    SLICES: tl.constexpr,  # slices, rounded up to a power of two
    PDL: tl.constexpr,
):
    """grid (L,): the best of the slices' best."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, SLICES)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    values = tl.load(values_ptr + row * slices + part, mask=part < slices, other=-float("inf"))
    best, at = tl.max(values, 0, return_indices=True)
    token = tl.load(ids_ptr + row * slices + tl.minimum(at, slices - 1))
    token = tl.where(tl.abs(best) == float("inf"), -1, token)
    tl.store(out_ptr + row, token.to(tl.int64))


@triton.jit
def _penalties_kernel(
    logits_ptr,  # [L, V], changed
    slots_ptr,  # [L]
    prompt_ptr,  # [S, V] bool
    counts_ptr,  # [S, V] int32
    repetition_ptr,  # [S], like the two below
    presence_ptr,
    frequency_ptr,
    vocab,
    SLICE: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (slices, L)."""
    row = tl.program_id(1).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    slot = tl.load(slots_ptr + row).to(tl.int64)
    repetition = tl.load(repetition_ptr + slot)
    presence = tl.load(presence_ptr + slot)
    frequency = tl.load(frequency_ptr + slot)
    if (repetition != 1) | (presence != 0) | (frequency != 0):
        ids = tl.program_id(0) * SLICE + tl.arange(0, SLICE)
        inside = ids < vocab
        x = tl.load(logits_ptr + row * vocab + ids, mask=inside, other=0.0)
        counts = tl.load(counts_ptr + slot * vocab + ids, mask=inside, other=0)
        prompt = tl.load(prompt_ptr + slot * vocab + ids, mask=inside, other=0) != 0
        once = counts > 0
        damped = tl.where(x > 0, tl.div_rn(x, repetition + tl.zeros_like(x)), x * repetition)
        x = tl.where(once | prompt, damped, x)
        x -= counts.to(tl.float32) * frequency
        x -= tl.where(once, presence, 0.0)
        tl.store(logits_ptr + row * vocab + ids, x, mask=inside)


@triton.jit
def _mask_stop_kernel(
    logits_ptr,  # [L, V], changed
    slots_ptr,  # [L]
    positions_ptr,  # [L]
    stop_ids_ptr,  # [S, width] int32
    min_position_ptr,  # [S]
    vocab,
    width,
    WIDTH: tl.constexpr,  # width, rounded up to a power of two
    PDL: tl.constexpr,
):
    """grid (L,)."""
    row = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if tl.load(positions_ptr + row) < tl.load(min_position_ptr + slot):
        entry = tl.arange(0, WIDTH)
        ids = tl.load(stop_ids_ptr + slot * width + entry, mask=entry < width, other=-1)
        forbidden = tl.full((WIDTH,), -float("inf"), tl.float32)
        tl.store(logits_ptr + row * vocab + ids, forbidden, mask=ids >= 0)


@triton.jit
def _keep_allowed_kernel(
    logits_ptr,  # [L, V], changed
    mask_of_ptr,  # [L] int32
    masks_ptr,  # [M, words] int32
    vocab,
    words,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(V / BLOCK), L). Only ids that are forbidden are written."""
    row = tl.program_id(1).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    mask = tl.load(mask_of_ptr + row).to(tl.int64)
    if mask >= 0:
        word = tl.program_id(0) * (BLOCK // 32) + tl.arange(0, BLOCK // 32)
        bits = tl.load(masks_ptr + mask * words + word, mask=word < words, other=-1)
        bit = tl.arange(0, 32)[None, :]
        ids = word[:, None] * 32 + bit
        left_out = ((bits[:, None] >> bit) & 1 == 0) & (ids < vocab)
        forbidden = tl.full((BLOCK // 32, 32), -float("inf"), tl.float32)
        tl.store(logits_ptr + row * vocab + ids, forbidden, mask=left_out)


Noise = tuple[Tensor, Tensor, Tensor, Tensor]  # slots, positions, temperature, seeds


def best_of_part(
    logits: Tensor, first: int = 0, noise: Noise | None = None, *, pdl: bool = False
) -> Tensor:
    """What `greedy`, or with noise `sample`, needs of a part of the vocabulary that begins at an
    id. [L, V] -> [2, L, C] int32: the bits of the best scores of some slices, and their ids."""
    rows, vocab = logits.shape
    slices = 4 * triton.cdiv(vocab, 4 * SLICE)  # so that both halves are aligned
    best = torch.empty(2, rows, slices, dtype=torch.int32, device=logits.device)
    if not rows:
        return best
    values, ids = best[0].view(torch.float32), best[1]
    _best_of_slice[(slices, rows)](
        logits,
        values,
        ids,
        *(noise or (ids, ids, values, ids)),
        vocab,
        first,
        NOISE=noise is not None,
        SLICE=SLICE,
        PDL=pdl,
        num_warps=8 if noise else 4,
        launch_pdl=pdl,
    )
    return best


def best_of_parts(best: Tensor, *, pdl: bool = False) -> Tensor:
    """The token of each row by what `best_of_part` has found, parts side by side in the order of
    their ids. [2, L, C] -> [L] int64."""
    _, rows, slices = best.shape
    out = torch.empty(rows, dtype=torch.int64, device=best.device)
    if not rows:
        return out
    _best_of_row[(rows,)](
        best[0].view(torch.float32),
        best[1],
        out,
        slices,
        SLICES=triton.next_power_of_2(slices),
        PDL=pdl,
        num_warps=1,
        launch_pdl=pdl,
    )
    return out


def greedy(logits: Tensor, *, pdl: bool = False) -> Tensor:
    """The best id of each row, the lowest where several are best, -1 where logits are no numbers.
    [L, V] -> [L] int64."""
    return best_of_parts(best_of_part(logits, pdl=pdl), pdl=pdl)


def sample(
    logits: Tensor,
    slots: Tensor,
    positions: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    *,
    pdl: bool = False,
) -> Tensor:
    """Draw one id a row by the Gumbel-max rule. See `reference.sample`. Returns [L] int64."""
    noise = slots, positions, temperature, seeds
    return best_of_parts(best_of_part(logits, 0, noise, pdl=pdl), pdl=pdl)


def apply_penalties(
    logits: Tensor,
    slots: Tensor,
    prompt_mask: Tensor,
    output_counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
    *,
    pdl: bool = False,
) -> None:
    """Repetition, presence and frequency penalties, in place. See `reference.apply_penalties`."""
    rows, vocab = logits.shape
    if not rows:
        return
    _penalties_kernel[(triton.cdiv(vocab, SLICE), rows)](
        logits,
        slots,
        prompt_mask.view(torch.uint8),
        output_counts,
        repetition,
        presence,
        frequency,
        vocab,
        SLICE=SLICE,
        PDL=pdl,
        num_warps=8,
        launch_pdl=pdl,
    )


def mask_stop_tokens(
    logits: Tensor,
    slots: Tensor,
    positions: Tensor,
    stop_ids: Tensor,
    min_position: Tensor,
    *,
    pdl: bool = False,
) -> None:
    """Forbid stop ids before a row's min_tokens, in place. See `reference.mask_stop_tokens`."""
    rows, vocab = logits.shape
    width = stop_ids.shape[1]
    if not rows or not width:
        return
    _mask_stop_kernel[(rows,)](
        logits,
        slots,
        positions,
        stop_ids,
        min_position,
        vocab,
        width,
        WIDTH=triton.next_power_of_2(width),
        PDL=pdl,
        num_warps=1,
        launch_pdl=pdl,
    )


def keep_allowed(logits: Tensor, mask_of: Tensor, masks: Tensor, *, pdl: bool = False) -> None:
    """Forbid the ids whose bit is 0, in place. See `reference.keep_allowed`."""
    rows, vocab = logits.shape
    if rows:
        grid = (triton.cdiv(vocab, SLICE), rows)
        _keep_allowed_kernel[grid](
            logits, mask_of, masks, vocab, masks.shape[1],
            BLOCK=SLICE, PDL=pdl, num_warps=4, launch_pdl=pdl,
        )  # fmt: skip
