"""A matrix product of a model's step, described by what decides its kernels."""

from dataclasses import dataclass

import torch

from quire.kernels.weight import Weight


@dataclass(frozen=True)
class Product:
    """module: the weight's name in a checkpoint, or that of its first part. weight: [N, K], or [E,
    N, K] for experts. norm, residual, silu, out_dtype: what is fused with it (see
    `reference.linear`). sampled: its rows are only those that sample, not all tokens."""

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
