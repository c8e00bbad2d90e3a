"""The kernels of mixtures of experts as the part of `TritonOps` that they are.

Invariant: as of kernels/triton_ops.py, whose class has what this one takes as given.
"""

from torch import Tensor

from quire.kernels.experts import mixing, one_row, routing, tiles
from quire.kernels.triton_part import TritonPart
from quire.kernels.weight import Weight


class ExpertTritonOps(TritonPart):
    """Implements what `ops.Fp8ExpertOps` and `ops.ExpertRowOps` ask for beside products."""

    def route(
        self, x: Tensor, router: Tensor, per_token: int, *, renormalise: bool
    ) -> tuple[Tensor, Tensor]:
        pdl = self.pdl and tiles.chains(x.shape[0])
        return routing.route(x, router, per_token, renormalise=renormalise, pdl=pdl)

    def mix_experts(
        self,
        x: Tensor,
        gate_up: Tensor,
        down: Tensor,
        experts: Tensor,
        weights: Tensor,
        *,
        residual: Tensor | None = None,
    ) -> Tensor:
        pdl = self.pdl and tiles.chains(x.shape[0])
        return mixing.mix_experts(x, gate_up, down, experts, weights, residual=residual, pdl=pdl)

    def mix_experts_fp8(
        self,
        x: Tensor,
        gate_up: Weight,
        down: Weight,
        experts: Tensor,
        weights: Tensor,
        *,
        residual: Tensor | None = None,
    ) -> Tensor:
        pdl = self.pdl and tiles.chains(x.shape[0])
        return mixing.mix_experts_fp8(
            x, gate_up, down, experts, weights, residual=residual, pdl=pdl
        )

    def mix_row(
        self,
        x: Tensor,
        norm_weight: Tensor,
        eps: float,
        router: Tensor,
        gate_up: Weight,
        down: Weight,
        per_token: int,
        *,
        renormalise: bool,
    ) -> Tensor | None:
        if self.exact or x.shape[0] != 1:
            return None
        narrow = down.scale is not None
        how = one_row.choose(x.dtype, down.data.shape[1:], per_token, narrow=narrow)
        if how is None:
            return None
        return one_row.mix_row(
            how, x, norm_weight, eps, router, gate_up, down, per_token,
            renormalise=renormalise, pdl=self.pdl,
        )  # fmt: skip
