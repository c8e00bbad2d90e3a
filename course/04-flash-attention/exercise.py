"""Exercise 4: one more tile.

Fill the hole in `absorb`. It is the heart of flash attention: a softmax over scores that are never
all there. Look at it with `python course/check.py 4`.
"""

import torch
from torch import Tensor


def absorb(
    best: Tensor, total: Tensor, found: Tensor, scores: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Take one more tile of keys in.

    best: [T, 1]    of each query the largest score so far; -inf before the first tile
    total: [T, 1]   the sum of exp(score - best) so far
    found: [T, D]   the sum of exp(score - best) * value so far
    scores: [T, K]  of this tile
    values: [K, D]  of this tile

    Returns the three as they are with this tile. In the end found / total is the answer, as if all
    scores had been there at once.

    A score in this tile may be larger than `best`. What was summed before was relative to the old
    one.
    """
    # ---- your code begins ----
    raise NotImplementedError("absorb")
    # ---- your code ends ----
