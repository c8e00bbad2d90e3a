"""Whether a layer of experts has one order of sums in any number of rows, asked of the card.

Invariant: router, products and their sum are compared with those of most rows, at the least, the
middle and the most rows that one set of kernels (`mixing.kernels`) takes. There is nothing to take
a launch's place. On meta tensors nothing is compared, as in linear/check.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from quire.kernels.experts import mixing, routing
from quire.kernels.linear.check import twice
from quire.kernels.weight import Weight

_SIZE = 1 << 10  # of x whose products vanish, so that what is left of them has bits in fp16 too


@dataclass(frozen=True)
class Mixture:
    """What matters of a mixture. renormalise: whether the weights of a token's experts are scaled
    to a sum of 1."""

    per_token: int
    renormalise: bool


def differs(
    gate_up: Weight, down: Weight, mixture: Mixture, most: int, dtype: torch.dtype
) -> int | None:
    """The number of rows at which a row's bits are others than those of `most` rows, if there is
    one. gate_up: [E, 2 * I, H], down: [E, H, I], of which sizes, types and device count; dtype: of
    activations.

    Halves of sums undo each other, as in `linear.check.Bits`: first those of gates and ups, then
    those of downs, whose x is the same backwards as the rows of gates and ups are.
    """
    count, hidden, _ = down.data.shape
    router = twice(down.data.new_empty(count, hidden, dtype=dtype), 1)
    gate_up = _filled(gate_up, dtype, 1, mirrored=True)
    x = down.data.new_empty(most, hidden, dtype=dtype)
    for sign, size in ((-1, _SIZE), (1, hidden**-0.5)):
        layer = _Layer(router, gate_up, _filled(down, dtype, -sign), mixture)
        twice(x, sign).mul_(size)
        wanted = layer(x)
        for rows in samples(most, mixture.per_token, count):
            pairs = zip(layer(x[:rows]), wanted, strict=True)
            if not x.is_meta and not all(torch.equal(one, whole[:rows]) for one, whole in pairs):
                return rows
    return None


def samples(most: int, per_token: int, count: int) -> Iterator[int]:
    """The numbers of rows that are tried, up to `most`."""
    every = range(1, most + 1)
    for _, group in groupby(every, lambda rows: mixing.kernels(rows, per_token, count)):
        rows = tuple(group)
        yield from sorted({rows[0], rows[len(rows) // 2], rows[-1]})


@dataclass(frozen=True)
class _Layer:
    """Router and experts."""

    router: Tensor
    gate_up: Weight
    down: Weight
    mixture: Mixture

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The experts of each row, their weights, and what comes of it."""
        of = self.mixture
        chosen = routing.route(x, self.router, of.per_token, renormalise=of.renormalise)
        residual = torch.zeros_like(x)
        if self.down.scale is None:
            weights = self.gate_up.data, self.down.data
            return *chosen, mixing.mix_experts(x, *weights, *chosen, residual=residual)
        mixed = mixing.mix_experts_fp8(x, self.gate_up, self.down, *chosen, residual=residual)
        return *chosen, mixed


def _filled(like: Weight, dtype: torch.dtype, sign: int, *, mirrored: bool = False) -> Weight:
    """A weight of these sizes, its numbers as of `twice`. mirrored: so are the rows of both its
    halves, with the sign +."""
    data = twice(torch.empty_like(like.data, dtype=dtype).flatten(0, 1), sign)
    scale = None
    if like.scale is not None:
        scale = twice(torch.empty_like(like.scale).flatten(0, 1), 1).mul_(0.5).exp_()
        scale = scale.view_as(like.scale)
    data = data.view_as(like.data)
    for numbers in (data, scale) if mirrored else ():
        if numbers is not None:
            half = numbers.unflatten(1, (2, -1))
            rows = half.shape[2] // 2
            half[:, :, half.shape[2] - rows :] = half[:, :, :rows].flip(2)
    return Weight(data.to(like.data.dtype), scale)
