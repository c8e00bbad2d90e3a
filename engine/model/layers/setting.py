"""What all layers of a model are built with."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.engine.model.layers.parallel import World
from quire.kernels.ops import Ops


@dataclass(frozen=True, slots=True)
class Setting:
    """Who computes, among whom a layer is shared, and what its parameters are kept in."""

    ops: Ops
    world: World
    dtype: torch.dtype
    device: torch.device

    def new(self, *shape: int) -> Tensor:
        """An unfilled parameter."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)
