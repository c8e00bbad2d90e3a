"""Where each weight of a checkpoint goes: whole, or this rank's part of it, into a parameter.

Invariant: the placements of a model cover each of its parameters exactly once, except the padding
of a vocabulary table, which stays zero. A checkpoint's weight needs no memory of its own: its
bytes go straight into the merged parameter.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Placement:
    """A weight of the checkpoint and the parameter's part that it fills.

    name, shape: as stored, [N] or [N, K]. target: a view of the parameter, [n] or [n, k], which
    takes the weight's `rows` (and, of a matrix, `cols`).
    """

    name: str
    shape: tuple[int, ...]
    target: Tensor
    rows: slice
    cols: slice

    @property
    def is_vector(self) -> bool:
        return len(self.shape) == 1

    @property
    def takes_whole_rows(self) -> bool:
        """Whether every number of a taken row is taken."""
        return self.is_vector or (self.cols.start, self.cols.stop) == (0, self.shape[1])

    def chunks(self, most: int) -> Iterator[tuple[int, int]]:
        """The taken rows, [first, last) in the stored weight, in pieces of about `most` numbers."""
        step = max(1, most // (1 if self.is_vector else self.shape[1]))
        for first in range(self.rows.start, self.rows.stop, step):
            yield first, min(first + step, self.rows.stop)

    def put(self, first: int, stored: Tensor) -> None:
        """Write stored rows from `first` on: [m, K] or [m], of any dtype."""
        begin = first - self.rows.start
        part = stored if self.is_vector else stored[:, self.cols]
        self.target[begin : begin + part.shape[0]].copy_(part, non_blocking=True)


def whole(name: str, target: Tensor) -> Placement:
    """A weight that a parameter takes as it is. target: [N] or [N, K]."""
    cols = slice(0, target.shape[1] if target.dim() > 1 else 1)
    return Placement(name, tuple(target.shape), target, slice(0, target.shape[0]), cols)


def new_weight(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An unfilled parameter."""
    return torch.empty(shape, dtype=dtype, device=device)
