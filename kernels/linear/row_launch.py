"""Whether one row goes from attention to attention by one kernel (hopper_row.py), and its launch.

Invariant: all of it is a function of the model's sizes, the dtype and the card.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from quire.kernels import support
from quire.kernels.weight import RowWeights

ROWS = 16  # weight rows of a tile
SHARES, SHARE = 8, 64  # of a step of K: columns of the matrix instruction, and columns of each
PIECE = 1024  # numbers of x that are read at a time
EMPTY = -1  # bits of a bfloat16 or float16: no number, with a sign, which rounding never gives
_STEP = SHARES * SHARE  # columns of K
_STEP_BYTES = ROWS * _STEP * 2
_STAGES = 10  # steps in the ring at most
_BESIDE = 41 << 10  # bytes of shared memory that decode attention takes, and each program's share
_LEAST = 64 << 20  # bytes of a layer's weights, below which a kernel a product is as fast
_SMALL = 128 << 20  # and up to which two steps on their way are better than three


class RowUnavailable(RuntimeError):
    """The card's driver does not launch the kernel, and nothing was done."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a layer: of its residual, of what attention gives, and of its MLP."""

    hidden: int
    attended: int
    inner: int

    @classmethod
    def of(cls, weights: RowWeights) -> Self:
        hidden, attended = weights.o.shape
        return cls(hidden, attended, weights.down.shape[1])

    @property
    def pieces(self) -> int:
        """Of PIECE numbers, that hold any x."""
        return -(-max(self.hidden, self.attended, self.inner) // PIECE)

    @property
    def padded(self) -> int:
        """`hidden` as a power of two."""
        return 1 << (self.hidden - 1).bit_length()

    @property
    def in_flight(self) -> int:
        """Steps of K that a program has on their way."""
        return 2 if self.weight_bytes <= _SMALL else 3

    @property
    def weight_bytes(self) -> int:
        """Of a layer, but for keys and values."""
        return 2 * self.hidden * (2 * self.attended + 3 * self.inner)

    def stages(self, device: torch.device) -> int:
        """Steps of K in the ring: as many as leave room for attention beside."""
        left = support.shared_bytes(device) - _BESIDE - 2 * self.pieces * PIECE
        return min(_STAGES, left // _STEP_BYTES)

    def fit(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether the kernel is for them."""
        whole = not (self.hidden % _STEP or self.attended % _STEP or self.inner % _STEP)
        if dtype.itemsize != 2 or not whole or self.padded > self.pieces * PIECE:
            return False
        if self.weight_bytes < _LEAST:
            return False
        return support.has_gluon(device) and self.stages(device) > self.in_flight


@dataclass(frozen=True, slots=True)
class Room:
    """One layer's results on their way from program to program, as bits. numbers: int16 [2 * H +
    I]: the residual behind attention, the MLP's inside, the residual behind the layer."""

    numbers: Tensor
    hidden: int

    def out(self, dtype: torch.dtype) -> Tensor:
        """The residual behind the layer: [1, H]."""
        return self.numbers[-self.hidden :].view(dtype).unsqueeze(0)


def new_rooms(layers: int, sizes: Sizes, device: torch.device) -> list[Room]:
    """One for each layer of a step, EMPTY all over; to be made anew in each step, before its first
    kernel that is launched as a dependent."""
    shape = layers, 2 * sizes.hidden + sizes.inner
    every = torch.full(shape, EMPTY, dtype=torch.int16, device=device)
    return [Room(numbers, sizes.hidden) for numbers in every]
