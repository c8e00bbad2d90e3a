"""What exercise 4 is held against: a softmax in one piece, over tiles in all orders of size."""

from types import ModuleType

import torch
from checking import NotYet, attempt, judge
from torch import Tensor

NEVER_SHRUNK = (
    "you add the new tile to the old sums as they are: those were relative to the old best "
    "score, and have to shrink by exp(old best - new best) before"
)
FOUND_NOT_SHRUNK = (
    "you shrink the sum of weights and not the sum of weighted values: both were relative to the "
    "old best score"
)
TILE_ALONE = (
    "your best score is that of the new tile alone: it must never become smaller than what was "
    "seen before, or old sums would grow without bound"
)
NORMALISED = (
    "you divide by the tile's own sum: a tile does not know yet how much it weighs beside the "
    "others; divide once, in the end"
)
UPSIDE_DOWN = (
    "your sums grow where they have to shrink: the factor is exp(old best - new best), which is "
    "at most 1"
)

State = tuple[Tensor, Tensor, Tensor]


def _step(state: State, scores: Tensor, values: Tensor, kind: str) -> State:
    """Take a tile in, rightly or as a misconception would."""
    best, total, found = state
    mine = scores.amax(1, keepdim=True)
    better = mine if kind == "tile alone" else torch.maximum(best, mine)
    shrink = (better - best if kind == "upside down" else best - better).exp()
    if kind == "never shrunk":
        shrink = torch.ones_like(shrink)
    if kind == "upside down":
        shrink = torch.where(best.isinf(), 0.0, shrink)
    weights = (scores - better).exp()
    if kind == "normalised":
        weights = weights / weights.sum(1, keepdim=True)
    total = total * shrink + weights.sum(1, keepdim=True)
    kept = found if kind == "found not shrunk" else found * shrink
    return better, total, kept + weights @ values


def _start(queries: int, dim: int) -> State:
    return (
        torch.full((queries, 1), -torch.inf),
        torch.zeros(queries, 1),
        torch.zeros(queries, dim),
    )


def check(exercise: ModuleType) -> None:
    """Raises NotYet."""
    generator = torch.Generator().manual_seed(4)
    kinds = {
        "found not shrunk": FOUND_NOT_SHRUNK,  # its total is right: so it is told from the next
        "never shrunk": NEVER_SHRUNK,
        "tile alone": TILE_ALONE,
        "normalised": NORMALISED,
        "upside down": UPSIDE_DOWN,
    }
    for case, sizes in (("one tile", [1.0]), ("three tiles", [1.0, 3.0, 0.5])):
        tiles = [
            (size * torch.randn(3, 4, generator=generator), torch.randn(4, 5, generator=generator))
            for size in sizes
        ]
        got, right = _start(3, 5), _start(3, 5)
        wrong = dict.fromkeys(kinds, right)
        for number, (scores, values) in enumerate(tiles, 1):
            given = [x.clone() for x in (*got, scores, values)]
            got = attempt(exercise.absorb, *given)
            if not isinstance(got, tuple) or len(got) != 3:
                raise NotYet(f"{case}: expected best, total and found as they are now")
            right = _step(right, scores, values, "right")
            wrong = {kind: _step(wrong[kind], scores, values, kind) for kind in kinds}
            at = f"{case}, after tile {number}"
            for part in range(3):
                suspects = [(wrong[kind][part], word) for kind, word in kinds.items()]
                judge(got[part], right[part], suspects, at)
