"""What exercise 5 is held against: rows of equal and of very different lengths, blocks anywhere."""

import math
from types import ModuleType

import torch
from checking import attempt, judge
from torch import Tensor

PADDING = (
    "your rows look at what stands behind their context: the padding of a table names block 0, "
    "which is somebody else's, and has to be masked out"
)
WHOLE_BLOCKS = (
    "your mask ends with a block: the last block of a row is full in part, and what else stands "
    "in it is old"
)
WITHOUT_ITSELF = (
    "your rows do not see their own new token: a context counts it, so places up to context - 1 "
    "belong to it"
)
ZERO_SCORES = (
    "you set scores behind the context to 0: exp(0) is 1, so they still weigh; -inf weighs nothing"
)
UNSCALED = (
    "your scores are not divided by the square root of D: that belongs to them as in exercise 1, "
    "wherever the keys lie"
)
BLOCKS_OF_ONE = "you take the numbers of blocks for slots: block b begins at slot b * block_size"


def _attend(
    q: Tensor, keys: Tensor, values: Tensor, slots: Tensor, seen: Tensor, score: float = -math.inf
) -> Tensor:
    """Attention over these slots; places from `seen` on, a number a row, get this score."""
    scores = torch.einsum("rhd,rkhd->rhk", q, keys[slots]) / math.sqrt(q.shape[2])
    behind = torch.arange(slots.shape[1]) >= seen[:, None]
    weights = scores.masked_fill(behind[:, None], score).softmax(-1)
    return torch.einsum("rhk,rkhd->rhd", weights, values[slots])


def check(exercise: ModuleType) -> None:
    """Raises NotYet."""
    size, generator = 4, torch.Generator().manual_seed(5)
    store = [torch.randn(40, 2, 8, generator=generator) for _ in range(2)]
    for case, tables, contexts in (
        ("one row of two full blocks", [[7, 2]], [8]),
        ("rows of 1, 3 and 1 full blocks", [[6, 0, 0], [4, 8, 3], [2, 0, 0]], [4, 12, 4]),
        ("rows of 6 and 7 tokens, blocks of 4", [[3, 9], [5, 1]], [6, 7]),
        ("rows of 2, 11 and 4 tokens", [[6, 0, 0], [4, 8, 3], [2, 0, 0]], [2, 11, 4]),
    ):
        table, context = torch.tensor(tables), torch.tensor(contexts)
        q = torch.randn(len(contexts), 2, 8, generator=generator)
        slots = (table[:, :, None] * size + torch.arange(size)).flatten(1)
        wrong = (table[:, :, None] + torch.arange(size)).flatten(1)
        everything = torch.full_like(context, slots.shape[1])
        suspects = [
            (_attend(q, *store, wrong, context), BLOCKS_OF_ONE),
            (_attend(q, *store, slots, context - 1), WITHOUT_ITSELF),
            (_attend(q, *store, slots, context, 0.0), ZERO_SCORES),
            # Where all blocks are full the next is right: so it is told from the one behind it.
            (_attend(q, *store, slots, -(-context // size) * size), WHOLE_BLOCKS),
            (_attend(q, *store, slots, everything), PADDING),
            (_attend(q * math.sqrt(q.shape[2]), *store, slots, context), UNSCALED),
        ]
        got = attempt(exercise.attend, q.clone(), *store, table.clone(), context.clone(), size)
        judge(got, _attend(q, *store, slots, context), suspects, case)
