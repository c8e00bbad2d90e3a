"""What exercise 12 is held against: scores whose chances are known, and random ones."""

from types import ModuleType

import torch
from checking import attempt, judge
from torch import Tensor

MULTIPLIED = (
    "you multiply by the temperature: a low one is to make the likeliest likelier, so scores are "
    "divided by it"
)
UNTEMPERED_CUT = (
    "you choose top-p's tokens before the temperature has changed the chances: the scores are "
    "divided by it first, and the cut is made of what comes of that"
)
NO_CROSSING = (
    "you leave out the token that crosses top_p: those before it have less than top_p together, so "
    "it belongs to them (and where the first crosses it, nothing would be left)"
)
NOT_SCALED = (
    "what you keep sums to less than 1: scale it, or take the softmax again of those that are left"
)
NO_CUT = "you pass over top_p: all tokens may still be drawn"
COLD = (
    "you divide the chances by the temperature, and not the scores: that changes nothing but their "
    "sum; the softmax comes after it"
)


def variant(
    logits: Tensor, temperature: float, top_p: float, *, scale: str = "divided", cut: str = "after",
    scaled: bool = True,
) -> Tensor:  # fmt: skip
    """Chances with one thing done otherwise."""
    by = {"divided": 1 / temperature, "multiplied": temperature, "late": 1.0}[scale]
    chances = (logits * by).softmax(0)
    judged = logits.softmax(0) if cut == "untempered" else chances
    found, order = judged.sort(descending=True)
    upto = found.cumsum(0)
    gone = upto > top_p if cut == "before crossing" else upto - found >= top_p
    if cut != "never":
        chances = chances.index_fill(0, order[gone], 0.0)
    return chances / chances.sum() if scaled else chances


def check(exercise: ModuleType) -> None:
    """Raises NotYet."""
    generator = torch.Generator().manual_seed(3)
    cases = [
        ("half, a third, a sixth; top-p 0.6", torch.tensor([1 / 6, 1 / 2, 1 / 3]).log(), 1.0, 0.6),
        ("one sure token, top-p 0.5", torch.tensor([0.0, 5.0, 1.0]), 1.0, 0.5),
        ("seven scores, temperature 0.5", torch.randn(7, generator=generator), 0.5, 1.0),
        ("40 scores, temperature 2", torch.randn(40, generator=generator) * 2, 2.0, 0.7),
    ]
    for case, logits, temperature, top_p in cases:
        asked = logits, temperature, top_p
        late = variant(*asked, scale="late", scaled=False) / temperature
        suspects = [
            (variant(*asked, scale="multiplied"), MULTIPLIED),
            (variant(*asked, cut="untempered"), UNTEMPERED_CUT),
            (variant(*asked, cut="before crossing").nan_to_num(), NO_CROSSING),
            (variant(*asked, cut="before crossing"), NO_CROSSING),
            (variant(*asked, cut="before crossing", scaled=False), NO_CROSSING),
            (variant(*asked, cut="never"), NO_CUT),
            (variant(*asked, scaled=False), NOT_SCALED),
            (late, COLD),
            (late / late.sum(), COLD),
        ]
        got = attempt(exercise.chances, logits.clone(), temperature, top_p)
        judge(got, variant(*asked), suspects, case)
