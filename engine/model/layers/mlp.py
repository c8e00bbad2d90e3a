"""The MLP of a layer: SwiGLU (Shazeer, 2020), dense or as a mixture of experts.

Invariant: both kinds norm the residual first, and return it with their result added.
"""

from torch import Tensor

from quire.engine.model.config import Experts
from quire.engine.model.layers.build_context import BuildContext
from quire.engine.model.layers.linear import (
    ColumnParallelLinear,
    Part,
    RowParallelLinear,
    stored_as_one,
)
from quire.engine.model.layers.parallel import length
from quire.engine.model.layers.placement import whole
from quire.engine.model.layers.quantized import check_begins_block
from quire.engine.model.layers.residual import ResidualStream, residual_norm
from quire.engine.model.layers.weight_formats import weight_format
from quire.engine.model.product import Product
from quire.kernels.ops import ExpertOps, has_expert_row, has_experts

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class DenseMlp:
    """One MLP for all tokens. module: its name in the checkpoint. merged: gate and up are stored as
    one matrix, gate_up_proj."""

    def __init__(
        self,
        context: BuildContext,
        module: str,
        hidden: int,
        intermediate: int,
        *,
        merged: bool = False,
    ) -> None:
        inner = context.world.split(intermediate, "intermediate_size")
        parts = [Part(f"{module}.{name}_proj", intermediate, inner) for name in ("gate", "up")]
        if merged:
            parts = stored_as_one(f"{module}.gate_up_proj", [(intermediate, inner)] * 2)
        self.gate_up = ColumnParallelLinear(context, parts, hidden)
        if self.gate_up.weight.is_fp8:  # kernels look for up's scales in blocks of their own
            check_begins_block(length(inner), f"{module}.up_proj")
        self.down = RowParallelLinear(context, f"{module}.down_proj", hidden, intermediate, inner)
        self.placements = [*self.gate_up.placements, *self.down.placements]
        both = self.gate_up.weight.is_fp8 and self.down.weight.is_fp8
        self._after = {"silu": True, "narrow": True} if both else {"silu": True}

    def products(self) -> list[Product]:
        return [self.gate_up.product(silu=True), self.down.product()]

    def __call__(
        self, stream: ResidualStream, norm: Tensor, then: Tensor, eps: float
    ) -> ResidualStream:
        """stream: [T, H], whose storage may be reused; norm: [H], of what comes in; then: [H], of
        what comes next -> [T, H]."""
        inner = self.gate_up(stream, norm, eps, **self._after)
        return self.down(inner, stream.residual, then, eps)


class ExpertsMlp:
    """A router and its experts; each token uses a few of them. Each rank holds a part of every
    expert's width; the router is whole on every rank."""

    def __init__(self, context: BuildContext, module: str, hidden: int, experts: Experts) -> None:
        ops = context.ops
        assert has_experts(ops)  # the registry refuses a device without them
        self._ops: ExpertOps = ops
        self._world = context.world
        self._experts = experts
        width, count = experts.intermediate_size, experts.count
        inner = context.world.split(width, "moe_intermediate_size")
        held = length(inner)
        modules = [f"{module}.experts.{index}" for index in range(count)]
        fmt = weight_format(context, [f"{one}.{name}" for one in modules for name in _PROJECTIONS])
        self.router = context.new(count, hidden)
        self.gate_up = fmt.new(count, 2 * held, hidden)
        self.down = fmt.new(count, hidden, held)
        self._mix = fmt.mix_experts()
        self._operand = fmt.operand(self.gate_up), fmt.operand(self.down)
        self._module = f"{module}.experts"
        self.placements = [whole(f"{module}.gate.weight", self.router)]
        for index, one in enumerate(modules):
            pair, every = self.gate_up.of(index), slice(0, hidden)
            for name, begin in (("gate_proj", 0), ("up_proj", held)):
                part = fmt.part(pair, begin, begin + held, f"{one}.{name}")
                shape = (width, hidden)
                self.placements += fmt.placements(f"{one}.{name}", shape, part, inner, every)
            shape, down = (hidden, width), self.down.of(index)
            self.placements += fmt.placements(f"{one}.down_proj", shape, down, every, inner)

    def products(self) -> list[Product]:
        return [Product(self._module, self.gate_up), Product(self._module, self.down)]

    def __call__(
        self, stream: ResidualStream, norm: Tensor, then: Tensor, eps: float
    ) -> ResidualStream:
        """As of DenseMlp."""
        ops, experts = self._ops, self._experts
        if self._world.size == 1 and has_expert_row(ops):
            mixed = ops.mix_row(
                stream.residual, norm, eps, self.router, self.gate_up, self.down,
                experts.per_token, renormalise=experts.norm_topk_prob,
            )  # fmt: skip
            if mixed is not None:
                return ResidualStream(mixed)
        x = stream.norm(ops, norm, eps)
        chosen, weights = ops.route(
            x, self.router, experts.per_token, renormalise=experts.norm_topk_prob
        )
        if self._world.size == 1:
            mixed = self._mix(x, *self._operand, chosen, weights, residual=stream.residual)
            return ResidualStream(mixed)
        mixed = self._mix(x, *self._operand, chosen, weights)
        return residual_norm(ops, self._world, mixed, stream.residual, then, eps)
