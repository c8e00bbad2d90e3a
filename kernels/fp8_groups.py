"""Groups of 128 columns of FP8 activations that share a scale: how a scale is computed, and where a
row's numbers and scales are.

Invariant: scales and quotients equal those of `reference.fp8.quantize_rows` wherever they are
computed.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.weight import Quantized

GROUP = 128  # columns that share a scale
_ROWS_ALIGNED = 16


@triton.jit
def quotient(y, scale):
    """y / scale, rounded as a division is: one Newton step on the rounded reciprocal (Markstein,
    1990). y: [G, 128]; scale: [G], not zero."""
    divisor = tl.maximum(scale, 1.1754943508222875e-38)  # the least normal number
    inverse = tl.div_rn(tl.full(divisor.shape, 1.0, tl.float32), divisor)
    about = y * inverse[:, None]
    return tl.fma(tl.fma(-about, divisor[:, None], y), inverse[:, None], about)


@triton.jit
def group_scales(y):
    """What each group is divided by: [G] of [G, 128] fp32; 1 where all are zero."""
    largest = tl.max(tl.abs(y), 1)
    return tl.where(
        largest == 0.0, 1.0, tl.div_rn(largest, tl.full(largest.shape, 448.0, tl.float32))
    )


def new(x: Tensor, width: int, *, by_group: bool = False) -> Quantized:
    """Unfilled, on x's device, for as many rows. by_group: the scales of one group lie side by
    side, as the library's product reads them; both parts then have room for the padded rows."""
    rows, groups = x.shape[0], triton.cdiv(width, GROUP)
    room = triton.cdiv(rows, _ROWS_ALIGNED) * _ROWS_ALIGNED if by_group else rows
    data = torch.empty(room, width, dtype=torch.float8_e4m3fn, device=x.device)[:rows]
    if by_group:
        scale = torch.empty(groups, room, dtype=torch.float32, device=x.device).t()[:rows]
    else:
        scale = torch.empty(rows, groups, dtype=torch.float32, device=x.device)
    return Quantized(data, scale)
