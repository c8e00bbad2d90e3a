"""Checks on the card that exact mode's launches for an FP8 weight have one order of sums.

Invariant: what `fp8_tuning.exact` chooses is compared, at the least, the middle and the most rows
of a bucket, with the tile of most rows. There is no replacement for a launch that differs.
"""

from typing import Any

import torch
from torch import Tensor

from quire.kernels import support
from quire.kernels.fp8_groups import GROUP
from quire.kernels.linear import check, fp8_linear, fp8_tuning
from quire.kernels.linear.check import Fusion
from quire.kernels.linear.fp8_tuning import Fp8Tile, Fp8Variant
from quire.kernels.weight import Weight


def differs(weight: Tensor, fusion: Fusion, dtype: torch.dtype) -> int | None:
    """The number of rows at which a row's bits differ from those with all rows, or None. weight:
    [N, K], of which only the sizes and the device matter; dtype: of activations."""
    bits = Fp8Bits(weight, fusion, dtype)
    for _bucket, rows in check.samples(fusion.most):
        at = bits.differ_at(bits.tile(rows[-1]), rows)
        if at is not None:
            return at
    return None


class Fp8Bits(check.Bits):
    """Like `Bits`, for an FP8 weight whose scales are also the same backwards."""

    def __init__(self, weight: Tensor, fusion: Fusion, dtype: torch.dtype) -> None:
        super().__init__(torch.empty_like(weight, dtype=dtype), fusion, split=1)

    def tile(self, bucket: int) -> Fp8Tile:
        shared = support.shared_bytes(self._device)
        return fp8_tuning.exact(*self._size, bucket, self._fusion.silu, shared)

    def _weight_of(self, n: int, k: int) -> Weight:
        scale = self._twice(-(-n // GROUP), -(-k // GROUP), 1)
        return Weight(self._twice(n, k, 1).to(torch.float8_e4m3fn), scale.float().exp_())

    def _product(self, variant: Fp8Variant, x: Tensor, **fused: Any) -> Tensor:
        made = fp8_linear.run(variant, x, self._weight, **fused)
        assert isinstance(made, Tensor)
        return made
