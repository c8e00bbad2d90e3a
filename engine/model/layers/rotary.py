"""Cosines and sines of rotary positions (Su et al., 2021), stretched by YaRN (Peng et al., 2023) or
as in Llama 3.1 (Llama Team, 2024).

Invariant: the table is computed in fp32 from fp32 frequencies, in the order that transformers does
it: models were trained on those roundings. It is built once and only read afterwards.
"""

import math

import torch
from torch import Tensor

from quire.engine.model.config import Llama3Scaling, RopeScaling


def cos_sin_table(
    head_dim: int,
    positions: int,
    theta: float,
    scaling: RopeScaling | Llama3Scaling | None,
    device: torch.device,
) -> Tensor:
    """[positions, head_dim] fp32: head_dim / 2 cosines, then as many sines.

    On the meta device its shape alone: arithmetic there loads torch's compiler, which takes seconds
    and which nothing else of a server needs.
    """
    frequencies = inverse_frequencies(head_dim, theta, scaling)
    table = torch.empty(positions, head_dim, dtype=torch.float32, device=device)
    if table.is_meta:
        return table
    angles = torch.arange(positions, dtype=torch.float32, device=device)[:, None]
    angles = angles * frequencies.to(device)
    torch.cos(angles, out=table[:, : head_dim // 2])
    torch.sin(angles, out=table[:, head_dim // 2 :])
    return table.mul_(scaling.attention_factor) if isinstance(scaling, RopeScaling) else table


def inverse_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | Llama3Scaling | None
) -> Tensor:
    """Radians a position, for each pair of dimensions: [head_dim / 2] fp32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    wavelengths = theta**exponents
    if scaling is None:
        return 1.0 / wavelengths
    if isinstance(scaling, Llama3Scaling):
        return _by_wavelength(1.0 / wavelengths, scaling)
    kept = 1.0 - _stretched_share(head_dim, theta, scaling)
    return 1.0 / (scaling.factor * wavelengths) * (1.0 - kept) + 1.0 / wavelengths * kept


def _by_wavelength(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Llama 3.1's: the whole factor for slow frequencies, none for fast ones, a ramp between."""
    turns = scaling.original_max_position_embeddings / (2 * math.pi / frequencies)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp_(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _stretched_share(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """How much of each frequency is stretched: 0 for the fast ones, 1 for the slow, a ramp between.

    [head_dim / 2] fp32.
    """

    def dimension(rotations: float) -> float:
        """The dimension that turns this often over the length of training."""
        length = scaling.original_max_position_embeddings
        return head_dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step, not a division by zero
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)
    return ramp.clamp_(0, 1)
