"""The library's product of FP8 numbers with block scales (cuBLAS 12.9 and up, on sm_90).

Invariant: it is used only on a device on which a small product has given the right result. It has
its own order of sums.
"""

import logging
from functools import cache

import torch
from torch import Tensor

from quire.kernels import fp8_groups, support
from quire.kernels.linear.cublas_lt import CublasLt
from quire.kernels.reference import fp8
from quire.kernels.weight import Quantized, Weight

log = logging.getLogger(__name__)

STEP = 512  # columns: it takes the scales of a weight four blocks at a time
DTYPE = torch.bfloat16  # of activations; it could give others, and is not asked for them
_CUDA = (12, 9)
_WITHOUT_ROOM = 1024  # rows up to which it is faster without room beside


def available(device: torch.device) -> bool:
    """Whether it can be used here. Without a GPU: whether it could on the assumed one."""
    cuda = tuple(int(part) for part in (torch.version.cuda or "0.0").split(".")[:2])
    if support.capability(device) != (9, 0) or cuda < _CUDA:
        return False
    return device.type != "cuda" or _is_right(device)


@cache
def _is_right(device: torch.device) -> bool:
    """Whether a product with a scale of its own for each block is the twin's."""
    return all(_agrees(device, rows) for rows in (3, _WITHOUT_ROOM + 1))


def _agrees(device: torch.device, rows: int) -> bool:
    x = torch.arange(rows * STEP, device=device).view(rows, -1).sin().bfloat16()
    weight = torch.arange(256 * STEP, device=device).view(256, -1).cos()
    weight *= torch.arange(1, 5, device=device).repeat_interleave(128)
    weight[128:] *= 7
    made = fp8.quantize_blocks(weight)
    expected = fp8.linear_fp8(x, made).float()
    try:
        found = product(_by_group(*fp8.quantize_rows(x)), made, x.dtype).float()
    except (RuntimeError, ValueError):
        return False
    return bool((found - expected).norm() <= 1e-2 * expected.norm())


def _by_group(data: Tensor, scale: Tensor) -> Quantized:
    """The result as the kernel would give it, without launching one, which no warm-up would know
    of."""
    given = fp8_groups.new(data, data.shape[1], by_group=True)
    given.data.copy_(data)
    given.scale.copy_(scale)
    return given


def product(x: Quantized, weight: Weight, dtype: torch.dtype) -> Tensor:
    """x @ weight.T in dtype, [T, N]. x: quantized by_group; the rows of its padding are multiplied
    like any, and left out of the result."""
    assert weight.scale is not None
    rows, width = x.data.shape
    groups, room = x.scale.shape[1], x.scale.stride(1)
    data = x.data.as_strided((room, width), (width, 1))
    scale = x.scale.as_strided((room, groups), (1, room))
    if data.is_meta:  # where nothing is computed torch does not know of these scales
        return torch.empty(rows, weight.data.shape[0], dtype=dtype, device=data.device)
    if room <= _WITHOUT_ROOM and dtype == DTYPE and (own := _own(data.device)) is not None:
        out = data.new_empty(room, weight.data.shape[0], dtype=dtype)
        if own.product(Quantized(data, scale), weight, out):
            return out[:rows]
    transposed = weight.data.t(), scale, weight.scale.t()
    return torch._scaled_mm(data, *transposed, out_dtype=dtype)[:rows]


@cache
def _own(device: torch.device) -> CublasLt | None:
    """The product without a workspace, if it is available."""
    try:
        return CublasLt(device)
    except (OSError, RuntimeError) as error:
        log.warning("FP8 products of few rows are given room beside, and slower: %s", error)
        return None
