"""Exercise 11: a rank's share.

Fill the hole in `partial`. Look at it with `python course/check.py 11`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def partial(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, rank: int, ranks: int) -> Tensor:
    """What rank `rank` of `ranks` computes of the second half of a layer, without asking anybody.

    x: [T, H]             the same on every rank
    gate, up: [I, H]      the whole is  (silu(x @ gate.T) * (x @ up.T)) @ down.T
    down: [H, I]          I is a multiple of ranks

    Summed over all ranks, the results must be the whole: [T, H]. Each rank may use only the rank-th
    part, I // ranks long and in one piece, of what is I long, in all three matrices: that is all it
    would hold in its memory.
    """
    # ---- your code begins ----
    size = gate.shape[0] // ranks
    mine = slice(rank * size, (rank + 1) * size)
    inner = F.silu(x @ gate[mine].T) * (x @ up[mine].T)
    return inner @ down[:, mine].T
    # ---- your code ends ----
