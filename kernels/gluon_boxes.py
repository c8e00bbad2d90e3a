"""Descriptors (TMA) of what kernels in Gluon copy to and from shared memory."""

from functools import cache
from typing import Any

from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

_TYPES = {
    "torch.bfloat16": gl.bfloat16,
    "torch.float16": gl.float16,
    "torch.float8_e4m3fn": gl.float8e4nv,
}


def box(
    data: Tensor, shape: list[int], block: list[int], strides: list[int] | None = None
) -> TensorDescriptor:
    """Of contiguous data as a matrix of `shape` [rows, columns], or with strides as an array of any
    shape, copied a block at a time. dtypes: bfloat16, float16 and e4m3."""
    layout = _layout(*block, dtype=str(data.dtype))
    return TensorDescriptor(data, shape, strides or [shape[1], 1], block, layout)


@cache
def _layout(*block: int, dtype: str) -> Any:
    """How a block lies in shared memory. Found once: it takes longer than the descriptor, and a
    long prompt's steps, which nothing captures, wait for their launches."""
    return gl.NVMMASharedLayout.get_default_for(list(block), _TYPES[dtype])


def cache_box(cache: Tensor, keys: int) -> TensorDescriptor:
    """A descriptor of a cache [blocks, Hkv, block_size, D] as rows of D, read `keys` at a time."""
    blocks, heads, size, dim = cache.shape
    return box(cache, [blocks * heads * size, dim], [keys, dim])
