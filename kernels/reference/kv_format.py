"""The number format of cached keys and values, and how they are read, in plain PyTorch.

A cache has the dtype of the activations, or is e4m3. In e4m3 a number is rounded to the nearest,
ties to even, without a scale (a scale of 1), after it was rounded to the activations' dtype. A
number beyond the largest becomes the largest; infinity and NaN become NaN, so that a row whose
numbers overflowed can still be recognised by its result. Every e4m3 number is also a bf16 and an
fp16 number: reading it rounds nothing.
"""

import torch
from torch import Tensor

from quire.kernels.reference.fp8 import FP8, LARGEST


def held(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys or values, of any shape, as a cache of this dtype holds them."""
    if dtype != FP8:
        return x.to(dtype)
    wide = x.float()
    return wide.clamp(-LARGEST, LARGEST).masked_fill(wide.isinf(), torch.nan).to(FP8)


def as_stored(cache: Tensor) -> Tensor:
    """A view of a cache whose elements can be copied by any operation: of e4m3 its bytes."""
    return cache.view(torch.uint8) if cache.dtype == FP8 else cache
