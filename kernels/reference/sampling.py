"""Logits to tokens: penalties, filters, Gumbel-max sampling, log-probabilities.

logits: [L, V] fp32, changed in place by the functions that say so. slots: [L], the slot of each
row; per-slot tensors are [S]. positions: [L], where in the sequence the sampled token will stand.
"""

import torch
from torch import Tensor

_INF = float("inf")


def apply_penalties(
    logits: Tensor,
    slots: Tensor,
    prompt_mask: Tensor,
    output_counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    """Repetition (Keskar et al., 2019), presence and frequency penalties, in place.

    prompt_mask: [S, V] bool, ids of the prompt; output_counts: [S, V] int32, ids sampled so far.
    """
    counts = output_counts[slots]
    in_output = counts > 0
    factor = repetition[slots, None]
    seen = in_output | prompt_mask[slots]
    damped = torch.where(logits > 0, logits / factor, logits * factor)
    logits.copy_(torch.where(seen, damped, logits))
    logits.sub_(counts * frequency[slots, None])
    logits.sub_(in_output * presence[slots, None])


def mask_stop_tokens(
    logits: Tensor, slots: Tensor, positions: Tensor, stop_ids: Tensor, min_position: Tensor
) -> None:
    """Forbid the ids that would end a row before its min_tokens, in place.

    stop_ids: [S, M] int32, -1 where unused; min_position: [S], first position they are allowed at.
    """
    ids = stop_ids[slots].long()
    early = (positions < min_position[slots])[:, None] & (ids >= 0)
    mask = torch.zeros_like(logits, dtype=torch.bool)
    mask.scatter_(1, ids.clamp(min=0), early.logical_and(ids >= 0))
    # Unused entries are clamped to id 0 and may overwrite it with False: set id 0 on its own.
    mask[:, 0] = (early & (ids == 0)).any(1)
    logits.masked_fill_(mask, -_INF)


def add_bias(logits: Tensor, rows: Tensor, ids: Tensor, values: Tensor) -> None:
    """Add values to single logits, in place. rows, ids: [K] int64, each pair once; values: [K]."""
    logits.index_put_((rows, ids), values, accumulate=True)


def keep_allowed(logits: Tensor, mask_of: Tensor, masks: Tensor) -> None:
    """Of rows that have a mask, forbid the ids whose bit is 0, in place.

    mask_of: [L] int32, a row of masks or -1 for none; masks: [M, ceil(V / 32)] int32, id i at bit
    i % 32 of word i // 32.
    """
    rows = (mask_of >= 0).nonzero()[:, 0]
    bits = torch.arange(32, dtype=torch.int32, device=masks.device)
    words = masks[mask_of[rows].long(), :, None]
    allowed = (words >> bits).bitwise_and_(1).flatten(1)[:, : logits.shape[1]]
    logits[rows] = logits[rows].masked_fill(allowed == 0, -_INF)


def filter_logits(
    logits: Tensor, slots: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> None:
    """Top-k, then top-p on what is left, then min-p; removed ids become -inf, in place.

    Probabilities are those after temperature (0 counts as 1). Every id that ties with the last one
    kept is kept, and the best id always is. top_k: [S] int32, 0 = all; top_p: [S], 1 = all;
    min_p: [S], 0 = all.
    Source: Holtzman et al., 2020 (top-p); Nguyen et al., 2024 (min-p).
    """
    vocab = logits.shape[1]
    k, p, least = top_k[slots, None].long(), top_p[slots, None], min_p[slots, None]
    k = torch.where(k > 0, k, vocab).clamp(max=vocab)
    if not bool(((k < vocab) | (p < 1) | (least > 0)).any()):
        return
    scaled = logits * _inverse_temperature(temperature, slots)
    threshold = torch.empty_like(least)
    rest = torch.arange(len(logits), device=logits.device)
    for width in (*(w for w in _BEST if w < vocab), vocab):
        whole = len(rest) == len(logits)
        rows = scaled if whole else scaled[rest]
        threshold[rest], sure = _lowest_kept(rows, k[rest], p[rest], width)
        rest = rest[~sure]
        if not len(rest):
            break
    floor = scaled.amax(-1, keepdim=True) + torch.log(least)
    logits.masked_fill_(scaled < torch.maximum(threshold, floor), -_INF)


def _inverse_temperature(temperature: Tensor, slots: Tensor) -> Tensor:
    """1 / temperature of each row, [L, 1]; 1 where the temperature is 0."""
    t = temperature[slots, None]
    return 1.0 / torch.where(t > 0, t, 1.0)


_BEST = (128, 2048)  # how many of a row's best are sorted, before the whole row is


def _lowest_kept(scaled: Tensor, k: Tensor, p: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The lowest value that top-k and then top-p keep, judged by a row's best `width` values.

    scaled: [L, V]; k: [L, 1], V = all; p: [L, 1]. Returns thresholds [L, 1] and, for each row,
    whether the values beyond `width` could not have changed it: [L].
    """
    vocab = scaled.shape[1]
    best = scaled.topk(width, dim=-1).values
    limited = k < vocab
    kth = torch.where(limited, best.gather(1, (k - 1).clamp(max=width - 1)), -_INF)
    kept = best.masked_fill(best < kth, -_INF)
    nucleus = p < 1
    total = kept.logsumexp(-1, keepdim=True)
    if bool((nucleus & ~limited).any()):
        total = torch.where(limited, total, scaled.logsumexp(-1, keepdim=True))
    probs = (kept - total).exp_()
    upto = probs.cumsum(-1)
    outside = upto - probs >= p
    outside[:, 0] = False
    last = kept.masked_fill(outside, _INF).amin(-1, keepdim=True)
    if width == vocab:
        sure = torch.ones_like(limited)
    else:
        all_seen = (k <= width) & ((scaled >= kth).sum(-1, keepdim=True) <= width)
        sure = torch.where(limited, all_seen, ~nucleus | (upto[:, -1:] >= p))
    return torch.where(nucleus, last, kth), sure[:, 0]


def _mix(x: Tensor) -> Tensor:
    """A bijective 32-bit hash on int32, in place (constants found by Wellons, `lowbias32`)."""
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - (1 << 32)
    x ^= (x >> 16) & 0xFFFF
    return x


def _noise(ids: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """Exponential(1) noise for int32 vocabulary ids; seeds and positions broadcast against them."""
    low = (((seeds & 0xFFFFFFFF) + (1 << 31)) % (1 << 32) - (1 << 31)).int()
    high = (seeds >> 32).int()
    first = _mix(low ^ _mix(positions.int() + 0x1E3779B9))
    second = _mix(high ^ _mix(first + 0x05EBCA6B))
    x = _mix(_mix(ids ^ first) ^ second)
    # Uniform in (0, 1) with its digits near 0, where the winners are: an exact 0 would win always.
    u = (x.bitwise_and_(0x7FFFFFFF).float() + 0.5).mul_(2.0**-31)
    return u.clamp_(max=1 - 2.0**-24).neg_().log1p_().neg_()


def exponential_noise(seeds: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """Exponential(1) noise [L, V], a pure function of (seed, position, vocabulary id).

    seeds: [L] int64 (already told apart by sibling index); positions: [L].
    """
    ids = torch.arange(vocab, dtype=torch.int32, device=seeds.device)
    return _noise(ids[None], seeds[:, None], positions[:, None])


_NOISE_AT_ONCE = 1 << 18  # elements: what a core's cache holds


def sample(
    logits: Tensor, slots: Tensor, positions: Tensor, temperature: Tensor, seeds: Tensor
) -> Tensor:
    """Draw one id a row by the Gumbel-max rule; temperature 0 takes the best; -1 as in `greedy`.
    Returns [L] int64.

    Source: Gumbel-max (Gumbel, 1954): argmax(logits / temperature - log(exponential noise)).
    """
    tokens = greedy(logits)
    hot = ((temperature[slots] > 0) & (tokens >= 0)).nonzero()[:, 0]
    scale = _inverse_temperature(temperature, slots)
    for rows in hot.split(max(1, _NOISE_AT_ONCE // logits.shape[1])):
        noisy = logits[rows] * scale[rows]
        _subtract_log_noise(noisy, seeds[slots[rows]], positions[rows])
        tokens[rows] = noisy.argmax(-1)
    return tokens


def _subtract_log_noise(scaled: Tensor, seeds: Tensor, positions: Tensor) -> None:
    """scaled: [L, V], changed. Ids at -inf cannot win: after a filter, noise is for the rest."""
    alive = scaled > -_INF
    if 4 * int(alive.sum()) > scaled.numel():
        scaled.sub_(exponential_noise(seeds, positions, scaled.shape[1]).log_())
        return
    rows, ids = alive.nonzero(as_tuple=True)
    scaled[rows, ids] -= _noise(ids.int(), seeds[rows], positions[rows]).log_()


def greedy(logits: Tensor) -> Tensor:
    """The best id of each row, the lowest where several are best; -1 where a row holds NaN or +inf,
    or nothing but -inf. [L, V] -> [L] int64."""
    tokens = logits.argmax(-1)  # NaN counts as best
    best = logits.gather(1, tokens[:, None])[:, 0]
    return tokens.masked_fill_(~best.isfinite(), -1)


Noise = tuple[Tensor, Tensor, Tensor, Tensor]  # slots, positions, temperature, seeds


def best_of_part(logits: Tensor, first: int, noise: Noise | None = None) -> Tensor:
    """What `greedy`, or with noise `sample`, needs of a part of the vocabulary that begins at an
    id. [L, V] -> [2, L, 1] int32: the bits of the best score, and its id."""
    scores = logits.nan_to_num(_INF, _INF, -_INF)
    if noise is not None:
        slots, positions, temperature, seeds = noise
        ids = torch.arange(first, first + logits.shape[1], dtype=torch.int32, device=logits.device)
        log_noise = _noise(ids[None], seeds[slots, None], positions[:, None]).log_()
        noisy = scores * _inverse_temperature(temperature, slots) - log_noise
        scores = torch.where(temperature[slots, None] > 0, noisy, scores)
    best, at = scores.max(-1, keepdim=True)
    return torch.stack([best.view(torch.int32), (first + at).int()])


def best_of_parts(best: Tensor) -> Tensor:
    """The token of each row by what `best_of_part` has found, parts side by side in the order of
    their ids. [2, L, C] -> [L] int64."""
    values, ids = best[0].view(torch.float32), best[1].long()
    top, at = values.max(-1, keepdim=True)
    return ids.gather(1, at).masked_fill(~top.isfinite(), -1)[:, 0]


def logprobs(logits: Tensor, tokens: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-softmax of raw logits: the chosen token's and the best `count`.

    Returns chosen [L] fp32 (of id 0 where the token is -1), rank [L] int64 (1 = best),
    top ids [L, count], top values [L, count].
    """
    total = logits.logsumexp(-1, keepdim=True)
    chosen = logits.gather(1, tokens[:, None].long().clamp(min=0))
    rank = (logits > chosen).sum(-1) + 1
    values, ids = logits.topk(count, dim=-1)
    return (chosen - total)[:, 0], rank, ids, values - total
