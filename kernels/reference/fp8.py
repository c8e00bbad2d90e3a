"""FP8 weights in plain PyTorch: what the format of Qwen's and DeepSeek's checkpoints means.

A weight is e4m3 with a scale for each block of 128 x 128. An activation is rounded to e4m3 before
the product, with a scale for each token and each 128 columns. A product is the sum of
    activation * its scale * weight * its scale
over the columns, here in fp32, rounded once. Source: DeepSeek-V3 (2024), section 3.3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.kernels.reference.linear import rms_norm, silu_mul
from quire.kernels.weight import Weight

BLOCK = 128
LARGEST = 448.0  # of e4m3
FP8 = torch.float8_e4m3fn
_ROWS_AT_ONCE = 1024  # of a weight that is widened to fp32


def quantize_blocks(weight: Tensor) -> Weight:
    """The nearest FP8 weight: each block's largest number becomes e4m3's. weight: [N, K]."""
    rows, columns = weight.shape
    blocks = F.pad(weight.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = blocks.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    scale = _scale(blocks.abs().amax(dim=(1, 3)))
    data = (blocks / scale[:, None, :, None]).to(FP8).flatten(2).flatten(0, 1)
    return Weight(data[:rows, :columns].contiguous(), scale)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as a product takes them. x: [T, K] -> e4m3 [T, K], fp32 [T, ceil(K / 128)]."""
    columns = x.shape[1]
    groups = F.pad(x.float(), (0, -columns % BLOCK)).unflatten(1, (-1, BLOCK))
    scale = _scale(groups.abs().amax(dim=2))
    return (groups / scale[:, :, None]).to(FP8).flatten(1)[:, :columns], scale


def _scale(largest: Tensor) -> Tensor:
    """What a group's numbers are divided by; 1 where all are zero. A tensor is divided by
    a tensor: by a number PyTorch multiplies with its reciprocal on a GPU, and a scale would depend
    on the device."""
    return torch.where(largest == 0, 1.0, largest / torch.full_like(largest, LARGEST))


def widen_blocks(weight: Weight) -> Tensor:
    """The numbers that an FP8 weight stands for: [N, K] fp32."""
    assert weight.scale is not None
    rows, columns = weight.data.shape
    wide = weight.data.float()
    if rows % BLOCK or columns % BLOCK:
        scale = weight.scale.repeat_interleave(BLOCK, 0)[:rows]
        return wide.mul_(scale.repeat_interleave(BLOCK, 1)[:, :columns])
    wide.view(-1, BLOCK, columns // BLOCK, BLOCK).mul_(weight.scale[:, None, :, None])
    return wide


def _product(x: Tensor, weight: Weight) -> Tensor:
    """[T, N] fp32, of fp32 activations; a part of the weight is widened at a time."""
    data, scale = weight
    assert scale is not None
    parts = [
        F.linear(x, widen_blocks(Weight(some, scales)))
        for some, scales in zip(
            data.split(_ROWS_AT_ONCE), scale.split(_ROWS_AT_ONCE // BLOCK), strict=True
        )
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def linear_fp8(
    x: Tensor,
    weight: Weight,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    silu: bool = False,
    out_dtype: torch.dtype | None = None,
    narrow: bool = False,
) -> Tensor:
    """As `linear`, with an FP8 weight: x is normed, rounded to x's dtype, and then to e4m3.

    narrow: the result goes to one more product of an FP8 weight and nowhere else, so with silu it
    may come as that takes it (`Quantized`), which x may then be. Here it never does."""
    del narrow
    dtype = x.dtype
    if norm_weight is not None:
        x = rms_norm(x, norm_weight, eps)
    data, scale = quantize_rows(x)
    widened = data.float() * scale.repeat_interleave(BLOCK, 1)[:, : x.shape[1]]
    y = _product(widened, weight).to(dtype)
    if silu:
        y = silu_mul(y)
    if residual is not None:
        y = residual + y
    return y if out_dtype is None else y.to(out_dtype)
