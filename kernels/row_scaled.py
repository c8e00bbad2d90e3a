"""Matrices as int8 with a scale per row: half the bytes of bf16 to read.

Invariant: row n stands for scale[n] * data[n], the nearest such values to the original: scale[n] is
its largest magnitude over 127 (symmetric, no zero point), so no number is clipped. A row that is
not finite has a scale that is not finite.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_LARGEST = 127


@dataclass(frozen=True, slots=True, eq=False)
class RowScaled:
    """A matrix [N, K], or some rows of one, written through to it.

    data: [N, K] int8. scale: [N] fp32. dtype: that of rows which are looked up. It offers what
    layers and placements ask of a parameter; products alone look into it.
    """

    data: Tensor
    scale: Tensor
    dtype: torch.dtype

    @staticmethod
    def empty(rows: int, inputs: int, dtype: torch.dtype, device: torch.device) -> "RowScaled":
        """One that is not filled yet."""
        data = torch.empty(rows, inputs, dtype=torch.int8, device=device)
        return RowScaled(data, torch.empty(rows, dtype=torch.float32, device=device), dtype)

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scale.nbytes

    def __getitem__(self, rows: slice | Tensor) -> "RowScaled | Tensor":
        """A slice: these rows of the matrix itself. Indices [T]: the rows' numbers, [T, K]."""
        data, scale = self.data[rows], self.scale[rows]
        if isinstance(rows, slice):
            return RowScaled(data, scale, self.dtype)
        return (data.float() * scale[:, None]).to(self.dtype)

    def __setitem__(self, rows: slice, number: float) -> None:
        self.data[rows] = 0 if number == 0 else _LARGEST
        self.scale[rows] = number / _LARGEST

    def copy_(self, numbers: Tensor, non_blocking: bool = False) -> None:
        """Take numbers, [N, K] of any float type, as the nearest int8 of each row."""
        wide = numbers.to(self.data.device, torch.float32, non_blocking=non_blocking)
        scale = wide.abs().amax(dim=1).div_(_LARGEST)
        steps = torch.where(scale > 0, scale, 1.0)[:, None]
        self.data.copy_(torch.div(wide, steps).round_().clamp_(-_LARGEST, _LARGEST))
        self.scale.copy_(scale)

    def float(self) -> Tensor:
        """The numbers that it stands for, [N, K] fp32."""
        return self.data.float().mul_(self.scale[:, None])
