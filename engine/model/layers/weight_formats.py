"""How the weights of a product are stored: in the model's dtype, FP8, or int8 rows.

Invariant: a layer asks its format for parameters, for their placements and for the operation that
uses them, and never looks into a weight itself.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast

from torch import Tensor

from quire.engine.model.layers.build_context import BuildContext
from quire.engine.model.layers.placement import Placement
from quire.engine.model.layers.quantized import fp8_placements, new_fp8, part_of
from quire.kernels.ops import Fp8Ops, has_experts, has_fp8, has_fp8_experts
from quire.kernels.row_scaled import RowScaled
from quire.kernels.weight import Weight

Operation = Callable[..., Tensor]


class WeightFormat(Protocol):
    """A way to store the weights of a product."""

    def new(self, *shape: int) -> Weight:
        """An unfilled parameter: [N, K], or [E, N, K]."""
        ...

    def part(self, weight: Weight, begin: int, end: int, module: str) -> Weight:
        """Rows of a merged parameter, which are a matrix of their own."""
        ...

    def placements(
        self, module: str, shape: tuple[int, int], held: Weight, rows: slice, cols: slice
    ) -> list[Placement]:
        """The placements that fill a parameter from a checkpoint."""
        ...

    def operand(self, weight: Weight) -> Any:
        """The form of a weight that the operations take."""
        ...

    def linear(self) -> Operation:
        """The operation of `kernels.ops` that multiplies by such a weight."""
        ...

    def mix_experts(self) -> Operation:
        """The one that takes such weights of experts."""
        ...


class ModelDtypeFormat:
    """Weights in the model's dtype."""

    def __init__(self, context: BuildContext) -> None:
        self._context = context

    def new(self, *shape: int) -> Weight:
        return Weight(self._context.new(*shape))

    def part(self, weight: Weight, begin: int, end: int, module: str) -> Weight:
        del module
        return Weight(weight.data[begin:end])

    def placements(
        self, module: str, shape: tuple[int, int], held: Weight, rows: slice, cols: slice
    ) -> list[Placement]:
        name, target = f"{module}.weight", held.data
        if self._context.transposed:
            return [Placement(name, shape[::-1], target.t(), cols, rows)]
        return [Placement(name, shape, target, rows, cols)]

    def operand(self, weight: Weight) -> Tensor:
        return weight.data

    def linear(self) -> Operation:
        return self._context.ops.linear

    def mix_experts(self) -> Operation:
        ops = self._context.ops
        assert has_experts(ops)  # the registry refuses what lacks them
        return ops.mix_experts


class Fp8Format:
    """FP8. made: whether a checkpoint stores them wide."""

    def __init__(self, context: BuildContext, *, made: bool) -> None:
        ops = context.ops
        assert has_fp8(ops)  # the registry refuses what lacks them
        self._ops: Fp8Ops = ops
        self._device = context.device
        self._made = made

    def new(self, *shape: int) -> Weight:
        return new_fp8(*shape, device=self._device)

    def part(self, weight: Weight, begin: int, end: int, module: str) -> Weight:
        return part_of(weight, begin, end, module)

    def placements(
        self, module: str, shape: tuple[int, int], held: Weight, rows: slice, cols: slice
    ) -> list[Placement]:
        return fp8_placements(module, shape, held, rows, cols, made=self._made)

    def operand(self, weight: Weight) -> Weight:
        return weight

    def linear(self) -> Operation:
        return cast(Operation, self._ops.linear_fp8)  # `Quantized` is for another of them alone

    def mix_experts(self) -> Operation:
        ops = self._ops
        assert has_fp8_experts(ops)  # the registry refuses what lacks them
        return ops.mix_experts_fp8


class Int8Format:
    """Int8 with a scale a row, made while a checkpoint is read."""

    def __init__(self, context: BuildContext) -> None:
        self._context = context

    def new(self, *shape: int) -> Weight:
        rows, inputs = shape  # no experts: the registry refuses them
        made = RowScaled.empty(rows, inputs, self._context.dtype, self._context.device)
        return Weight(made.data, made.scale)

    def part(self, weight: Weight, begin: int, end: int, module: str) -> Weight:
        del module
        assert weight.scale is not None
        return Weight(weight.data[begin:end], weight.scale[begin:end])

    def placements(
        self, module: str, shape: tuple[int, int], held: Weight, rows: slice, cols: slice
    ) -> list[Placement]:
        return [Placement(f"{module}.weight", shape, self.operand(held), rows, cols)]

    def operand(self, weight: Weight) -> RowScaled:
        assert weight.scale is not None
        return RowScaled(weight.data, weight.scale, self._context.dtype)

    def linear(self) -> Operation:
        return self._context.ops.linear

    def mix_experts(self) -> Operation:
        raise AssertionError("the registry refuses experts of int8")


def table_format(context: BuildContext) -> WeightFormat:
    """The format of a vocabulary table, which is never FP8."""
    return Int8Format(context) if context.int8 else ModelDtypeFormat(context)


def weight_format(context: BuildContext, modules: list[str]) -> WeightFormat:
    """The format of the weights of one product, into which these modules are merged."""
    if context.int8:
        return Int8Format(context)
    fp8 = context.fp8_of(modules)
    return ModelDtypeFormat(context) if fp8 is None else Fp8Format(context, made=fp8.made_on_load)
