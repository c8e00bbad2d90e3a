"""What exercise 11 is held against: each rank's partial result, and their sum."""

from types import ModuleType

import torch
import torch.nn.functional as F
from checking import attempt, judge
from torch import Tensor

EVERYTHING = (
    "every rank computes all, and a share of the result is handed out: the sum is right, but no "
    "rank holds less or does less than one alone would"
)
MISMATCHED = (
    "your rank takes different parts of the matrices: the numbers that its rows of gate and up "
    "give must meet the columns of down that belong to them"
)
INPUT_SPLIT = (
    "you split what comes in: each rank then has only a part of each sum before the switch, and "
    "silu of a part is not a part of silu; split what is inside, so that the switch sees whole "
    "sums"
)
ALWAYS_FIRST = (
    "every rank takes the first part: the others are never computed, and the sum is wrong"
)


def _whole(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def check(exercise: ModuleType) -> None:
    """Raises NotYet."""
    generator = torch.Generator().manual_seed(11)
    for hidden, inner, ranks in ((8, 12, 1), (8, 12, 2), (8, 12, 4)):
        x = torch.randn(3, hidden, generator=generator)
        gate, up = (torch.randn(inner, hidden, generator=generator) for _ in range(2))
        down = torch.randn(hidden, inner, generator=generator)
        size, width = inner // ranks, hidden // ranks
        for rank in reversed(range(ranks)):
            mine, part = (
                slice(rank * size, (rank + 1) * size),
                slice(rank * width, (rank + 1) * width),
            )
            right = _whole(x, gate[mine], up[mine], down[:, mine])
            turned = slice(rank, None, ranks)  # every ranks-th row, and columns in one piece
            suspects = [
                (_whole(x, gate, up, down) / ranks, EVERYTHING),
                (_whole(x, gate[turned], up[turned], down[:, mine]), MISMATCHED),
                (_whole(x, gate[mine], up[turned], down[:, mine]), MISMATCHED),
                (_whole(x, gate[mine], up[mine], down[:, :size]), MISMATCHED),
                (_whole(x[:, part], gate[:, part], up[:, part], down), INPUT_SPLIT),
                (_whole(x, gate[:size], up[:size], down[:, :size]), ALWAYS_FIRST),
            ]
            given = [tensor.clone() for tensor in (x, gate, up, down)]
            got = attempt(exercise.partial, *given, rank, ranks)
            judge(got, right, suspects, f"rank {rank} of {ranks}")
