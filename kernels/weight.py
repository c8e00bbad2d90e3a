"""A model's matrix in the form that the operations take, and quantized activations for FP8."""

from typing import NamedTuple

import torch
from torch import Tensor


class Weight(NamedTuple):
    """A matrix, or one for each expert, and the scales of its blocks or rows.

    data: [..., N, K], of the model's dtype, float8_e4m3fn or int8. scale: None; of FP8 fp32
    [..., ceil(N / 128), ceil(K / 128)]: what the numbers of each block of 128 x 128 are multiplied
    by; of int8 fp32 [N], the same of each row (see `row_scaled`).
    """

    data: Tensor
    scale: Tensor | None = None

    @property
    def is_fp8(self) -> bool:
        """Whether the numbers are e4m3, with a scale for each block."""
        return self.data.dtype == torch.float8_e4m3fn

    def of(self, expert: int) -> "Weight":
        """One expert's matrix."""
        return Weight(self.data[expert], None if self.scale is None else self.scale[expert])


class RowWeights(NamedTuple):
    """What stands between two attentions. o: [H, Q]; post_norm: [H]; gate_up: [2 * I, H]; down:
    [H, I]; next_norm: [H] and next_qkv: [N, H], or None behind the last layer."""

    o: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor
    next_norm: Tensor | None = None
    next_qkv: Tensor | None = None


class Quantized(NamedTuple):
    """Activations as FP8 products take them.

    data: [rows, K] e4m3, contiguous. scale: [rows, ceil(K / 128)] fp32, what the numbers are
    multiplied by; contiguous, or its columns are (`by_group`), each padded to 16 rows."""

    data: Tensor
    scale: Tensor
