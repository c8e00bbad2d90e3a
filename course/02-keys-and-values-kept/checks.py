"""What exercise 2 is held against: one new token and many, behind none and behind some."""

import math
from types import ModuleType

import torch
from checking import NotYet, attempt, judge
from mini.layers import attention
from torch import Tensor

PAST_ALONE = (
    "your new tokens see the kept ones and not themselves: a token looks at all tokens up to "
    "itself, so its own key and value belong to them"
)
NOTHING_PAST = "your new tokens see only one another: the kept keys and values are not looked at"
MASK_FROM_ZERO = (
    "you mask as if the new tokens were the first of the text: new token i is token past + i, so "
    "the diagonal of the mask lies `past` columns further to the right"
)
UNMASKED = (
    "your new tokens see the ones behind them: with one new token that does not show, but a "
    "prompt comes all at once"
)
UNSCALED = (
    "your scores are not divided by the square root of D: that belongs to them as in exercise 1, "
    "wherever the keys lie"
)
NOT_KEPT = (
    "what you give back to keep does not hold old and new keys and values, in the order of the "
    "text: the next token would not find them"
)


def _look(q: Tensor, k: Tensor, v: Tensor, diagonal: int | None) -> Tensor:
    """Attention with the mask's diagonal anywhere; None: without a mask."""
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[2])
    if diagonal is not None:
        future = torch.ones(len(q), len(k), dtype=torch.bool).triu(diagonal)
        scores = scores.masked_fill(future, -math.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def check(exercise: ModuleType) -> None:
    """Raises NotYet."""
    generator = torch.Generator().manual_seed(2)
    for past, new in ((0, 3), (5, 1), (4, 3)):
        q, k, v = (torch.randn(new, 2, 8, generator=generator) for _ in range(3))
        past_k, past_v = (torch.randn(past, 2, 8, generator=generator) for _ in range(2))
        case = f"{new} new tokens behind {past}"
        given = [x.clone() for x in (q, k, v, past_k, past_v)]
        got = attempt(exercise.attend, *given)
        if not isinstance(got, tuple) or len(got) != 3:
            raise NotYet(f"{case}: expected what was found, and keys and values to keep")
        all_k, all_v = torch.cat((past_k, k)), torch.cat((past_v, v))
        suspects = [
            (_look(q, past_k, past_v, None), PAST_ALONE),
            (_look(q, all_k, all_v, 1), MASK_FROM_ZERO),
            (_look(q, all_k, all_v, None), UNMASKED),
            (_look(q, k, v, 1), NOTHING_PAST),
            (attention(q * math.sqrt(q.shape[2]), all_k, all_v), UNSCALED),
        ]
        judge(got[0], attention(q, all_k, all_v), suspects, case)
        for kept, right in zip(got[1:], (all_k, all_v), strict=True):
            if not isinstance(kept, Tensor) or not torch.equal(kept, right):
                raise NotYet(f"{NOT_KEPT} (seen in: {case})")
