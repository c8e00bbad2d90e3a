"""What exercise 1 is held against: attention of random numbers, and of texts of one token."""

import math
from types import ModuleType

import torch
from checking import attempt, judge
from mini.layers import attention
from torch import Tensor

UNMASKED = (
    "your tokens look at tokens that come after them: while a text is written those are not there "
    "yet, so the scores of later keys must be -inf before the softmax"
)
UNSCALED = (
    "your scores are not divided by the square root of D: sums of D products grow with D, and the "
    "softmax then sees almost nothing but the largest"
)
BY_D = "your scores are divided by D, not by its square root: all tokens then weigh almost the same"
TILED = (
    "your query heads take key heads in turn (0, 1, 0, 1): heads that stand side by side share one "
    "(0, 0, 1, 1), which is repeat_interleave and not repeat"
)
WRONG_AXIS = (
    "your softmax runs over the queries: each query's weights over the keys must sum to 1, so it "
    "runs over the axis of the keys"
)
WITHIN = (
    "your heads look at the other heads of their own token: q @ k.transpose(1, 2) is [T, Hq, Hq]; "
    "each head wants a score of every token with every token, [Hq, T, T], so put heads first"
)
LATE_MASK = (
    "you take later keys out after the softmax: the weights that are left then sum to less than 1; "
    "take the scores out before it"
)


def variant(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, axis: int = -1, mask: str = "before",
    tiled: bool = False,
) -> Tensor:  # fmt: skip
    """Attention with one thing done otherwise."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat(1, group, 1) if tiled else x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    later = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool).triu(1)
    if mask == "before":
        scores = scores.masked_fill(later, -math.inf)
    weights = scores.softmax(axis).nan_to_num()
    if mask == "after":
        weights = weights.masked_fill(later, 0.0)
    return torch.einsum("hqk,khd->qhd", weights, v)


def within(q: Tensor, k: Tensor, v: Tensor, *, masked: bool) -> Tensor:
    """What comes of products over the last two dimensions as they stand: heads over heads."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(1, 2) * q.shape[2] ** -0.5
    if masked:
        later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    return scores.softmax(-1) @ v


def check(exercise: ModuleType) -> None:
    """Raises NotYet."""
    generator = torch.Generator().manual_seed(1)
    for tokens, q_heads, kv_heads, dim in ((1, 2, 1, 4), (5, 2, 2, 8), (7, 6, 2, 16)):
        q = torch.randn(tokens, q_heads, dim, generator=generator)
        k = torch.randn(tokens, kv_heads, dim, generator=generator)
        v = torch.randn(tokens, kv_heads, dim, generator=generator)
        scale = dim**-0.5
        suspects = [
            (variant(q, k, v, scale=scale, mask="never"), UNMASKED),
            *((within(q, k, v, masked=masked), WITHIN) for masked in (False, True)),
            (variant(q, k, v, scale=scale, mask="after"), LATE_MASK),
            (variant(q, k, v, scale=1.0), UNSCALED),
            (variant(q, k, v, scale=1 / dim), BY_D),
            (variant(q, k, v, scale=scale, tiled=True), TILED),
            (variant(q, k, v, scale=scale, axis=-2), WRONG_AXIS),
        ]
        case = f"{tokens} tokens, {q_heads} query heads over {kv_heads}, D = {dim}"
        got = attempt(exercise.attention, q.clone(), k.clone(), v.clone())
        judge(got, attention(q, k, v), suspects, case)
