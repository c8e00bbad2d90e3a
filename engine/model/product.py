"""A product of a model's step, told apart by what decides its kernels."""

from dataclasses import dataclass

import torch

from quire.kernels.weight import Weight


@dataclass(frozen=True)
class Product:
    """module: of the weight, or of its first part, in a checkpoint. weight: [N, K], or [E, N, K] of
    experts. norm, residual, silu, out_dtype: what stands around it (see `reference.linear`).
    sampled: its rows are those that sample, not all tokens."""

    module: str
    weight: Weight
    norm: bool = False
    residual: bool = False
    silu: bool = False
    out_dtype: torch.dtype | None = None
    sampled: bool = False

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for products that the same kernels compute."""
        around = (self.norm, self.residual, self.silu, self.out_dtype, self.sampled)
        quantized = self.weight.scale is not None
        return (tuple(self.weight.data.shape), quantized, *around)
