"""Column- and row-parallel products over merged weights.

Invariant: a weight is allocated once, at its final address, and a checkpoint's matrices are written
into parts of it. Of a column-parallel layer each rank makes some outputs; of a row-parallel one
each rank makes a part of the sum, and the residual is added once, after the sum is whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from quire.engine.model.layers.build_context import BuildContext
from quire.engine.model.layers.parallel import length
from quire.engine.model.layers.placement import Placement, whole
from quire.engine.model.layers.residual import ResidualStream, residual_norm
from quire.engine.model.layers.weight_formats import weight_format
from quire.engine.model.product import Product
from quire.kernels.weight import Quantized


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix of a merged layer: its module, its outputs in the checkpoint, this rank's."""

    module: str
    outputs: int
    rows: slice


def stored_as_one(module: str, matrices: Sequence[tuple[int, slice]]) -> list[Part]:
    """The parts of one stored matrix that holds several, one below another. matrices: for each, all
    its outputs and this rank's part of them. A rank that has all of them reads it in one go."""
    total = sum(outputs for outputs, _ in matrices)
    if sum(length(rows) for _, rows in matrices) == total:
        return [Part(module, total, slice(0, total))]
    parts, first = [], 0
    for outputs, rows in matrices:
        parts.append(Part(module, total, slice(first + rows.start, first + rows.stop)))
        first += outputs
    return parts


class ColumnParallelLinear:
    """Several matrices over one input, one under another. y: [T, sum of this rank's rows].

    bias: [rows] or None; it is added by PyTorch, since no product takes one, or by the operation
    that follows (`unbiased`).
    """

    def __init__(
        self, context: BuildContext, parts: Sequence[Part], inputs: int, *, bias: bool = False
    ) -> None:
        fmt = weight_format(context, [part.module for part in parts])
        self.module = parts[0].module
        rows = sum(length(part.rows) for part in parts)
        self.weight = fmt.new(rows, inputs)
        self.bias = context.new(rows) if bias else None
        self._linear, self._operand = fmt.linear(), fmt.operand(self.weight)
        self.placements: list[Placement] = []
        begin = 0
        for part in parts:
            end = begin + length(part.rows)
            shape, cols = (part.outputs, inputs), slice(0, inputs)
            held = fmt.part(self.weight, begin, end, part.module)
            self.placements += fmt.placements(part.module, shape, held, part.rows, cols)
            if self.bias is not None:
                name, target = part.module + ".bias", self.bias[begin:end]
                self.placements.append(Placement(name, shape[:1], target, part.rows, slice(0, 1)))
            begin = end

    def product(self, *, norm: bool = True, silu: bool = False) -> Product:
        return Product(self.module, self.weight, norm=norm, silu=silu)

    def __call__(
        self, stream: ResidualStream, norm_weight: Tensor, eps: float, **after: bool
    ) -> Tensor:
        """stream: [T, inputs], normed first where it is not -> [T, rows]; with silu, gate and up:
        [T, rows / 2]. A layer with biases has no silu. after: silu, and narrow of `linear_fp8`."""
        if stream.normed is None:
            x, held = stream.residual, self._operand
            y = self._linear(x, held, norm_weight=norm_weight, eps=eps, **after)
        else:
            y = self._linear(stream.normed, self._operand, **after)
        return y if self.bias is None else y.add_(self.bias)

    def unbiased(self, x: Tensor) -> Tensor:
        """x: [T, inputs], normed -> [T, rows], to which the bias is still to be added."""
        return self._linear(x, self._operand)


class RowParallelLinear:
    """A matrix over this rank's part of the inputs; results are summed over the ranks, and the
    residual is added. bias: [outputs] or None; added once, after the sum, by the operation that
    follows."""

    def __init__(
        self,
        context: BuildContext,
        module: str,
        outputs: int,
        inputs: int,
        cols: slice,
        *,
        bias: bool = False,
    ) -> None:
        fmt = weight_format(context, [module])
        self._ops, self._world = context.ops, context.world
        self.module = module
        self.weight = fmt.new(outputs, length(cols))
        self._linear, self._operand = fmt.linear(), fmt.operand(self.weight)
        shape, rows = (outputs, inputs), slice(0, outputs)
        self.placements = fmt.placements(module, shape, self.weight, rows, cols)
        self.bias = context.new(outputs) if bias else None
        if self.bias is not None:
            self.placements.append(whole(f"{module}.bias", self.bias))

    def product(self) -> Product:
        return Product(self.module, self.weight, residual=self._world.size == 1)

    def __call__(
        self, x: Tensor | Quantized, residual: Tensor, then: Tensor, eps: float
    ) -> ResidualStream:
        """x: [T, this rank's inputs], perhaps quantized for an FP8 weight; residual: [T, outputs],
        whose storage may be reused; then: the weight of the norm that follows, [outputs]."""
        if self._world.size == 1:
            return ResidualStream(self._linear(x, self._operand, residual=residual))
        partial = self._linear(x, self._operand)
        return residual_norm(self._ops, self._world, partial, residual, then, eps)

    def added(self, x: Tensor, residual: Tensor) -> Tensor:
        """The same for models whose norms are separate: [T, outputs], without the bias."""
        if self._world.size == 1:
            return self._linear(x, self._operand, residual=residual)
        return self._world.add_partials(self._linear(x, self._operand), residual)
