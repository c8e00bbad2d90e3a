"""Where each weight of a checkpoint goes: whole or in part, into which parameter.

Invariant: the placements of a model cover each of its parameters exactly once, except for the
padding of a vocabulary table, which stays zero. A checkpoint's weight needs no memory of its own:
its bytes go straight into the merged parameter.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from quire.kernels.row_scaled import RowScaled


@dataclass(frozen=True, slots=True)
class Placement:
    """A weight of the checkpoint and the parameter's part that it fills.

    name, shape: as stored, [N] or [N, K]. target: a view of the parameter, [n] or [n, k], which
    takes the weight's `rows` (and, of a matrix, `cols`), as int8 rows where it is one of those.
    """

    name: str
    shape: tuple[int, ...]
    target: Tensor | RowScaled
    rows: slice
    cols: slice

    @property
    def nbytes(self) -> int:
        """Bytes of the parameter's part."""
        return int(self.target.nbytes)

    @property
    def is_vector(self) -> bool:
        return len(self.shape) == 1

    @property
    def takes_whole_rows(self) -> bool:
        """Whether every number of a taken row is taken."""
        return self.is_vector or (self.cols.start, self.cols.stop) == (0, self.shape[1])

    @property
    def row_numbers(self) -> int:
        """How many numbers of each row are taken."""
        return 1 if self.is_vector else int(self.cols.stop - self.cols.start)

    def chunks(self, most: int) -> Iterator[tuple[int, int]]:
        """The taken rows, [first, last) in the stored weight, in pieces of about `most` numbers."""
        step = max(1, most // max(1, self.row_numbers))
        for first in range(self.rows.start, self.rows.stop, step):
            yield first, min(first + step, self.rows.stop)

    def put(self, first: int, stored: Tensor) -> None:
        """Write stored rows from `first` on: [m, K] or [m], of any dtype."""
        self.put_taken(first, stored if self.is_vector else stored[:, self.cols])

    def clear(self) -> None:
        """Fill it with zeros, for steps that run before the weights are there."""
        if isinstance(self.target, Tensor):
            self.target.zero_()
        else:
            self.target[:] = 0

    def put_taken(self, first: int, part: Tensor) -> None:
        """Like `put`, from rows that hold only the taken columns: [m, k] or [m]."""
        begin = first - self.rows.start
        self.target[begin : begin + part.shape[0]].copy_(part, non_blocking=True)


def whole(name: str, target: Tensor) -> Placement:
    """A weight that a parameter takes as it is. target: [N] or [N, K]."""
    cols = slice(0, target.shape[1] if target.dim() > 1 else 1)
    return Placement(name, tuple(target.shape), target, slice(0, target.shape[0]), cols)
