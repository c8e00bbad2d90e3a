"""What every layer of a model is built with: operations, ranks, dtype, device, format."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.engine.errors import ConfigError
from quire.engine.model.config import Fp8
from quire.engine.model.fp8_modules import is_skipped
from quire.engine.model.layers.parallel import World
from quire.kernels.ops import Ops


@dataclass(frozen=True, slots=True)
class BuildContext:
    """The operations, the ranks that share a layer, and how its parameters are stored.

    transposed: a checkpoint holds the products' matrices as [inputs, outputs].
    """

    ops: Ops
    world: World
    dtype: torch.dtype
    device: torch.device
    fp8: Fp8 | None = None
    int8: bool = False
    transposed: bool = False

    def new(self, *shape: int) -> Tensor:
        """An unfilled parameter of the model's dtype."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def fp8_of(self, modules: list[str]) -> Fp8 | None:
        """The FP8 format of one product's weights, or None if they are not FP8. Raises ConfigError
        if some are and others are not."""
        if self.fp8 is None:
            return None
        skipped = [module for module in modules if is_skipped(module, self.fp8.skipped)]
        if not skipped:
            return self.fp8
        if len(skipped) < len(modules):
            other = next(module for module in modules if module not in skipped)
            raise ConfigError(
                f"quantization_config.modules_to_not_convert: names {skipped[0]} and not {other}: "
                "they are one product, of one format"
            )
        return None
