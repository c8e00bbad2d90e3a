"""The interpreter's products, summed as a matrix unit sums them: 16 columns of K after another.

NumPy's own order depends on how many rows and columns there are, so under it no two launch shapes
could be compared bit for bit. Here a group's sum is taken in fp64, in which products of 16-bit
numbers add up exactly, and is rounded once to fp32: no order within a group matters, and the order
of the groups does, as on the device.
"""

from typing import Any

import numpy as np
import triton.language as tl
from support import interpreter_fp8
from support.interpreter_bf16 import widened
from triton.runtime import interpreter

_GROUP = 16


def _numbers(operand: Any) -> np.ndarray:
    if operand.dtype.scalar == tl.float8e4nv:  # kept as bits
        return interpreter_fp8.widened(operand.data).astype(np.float64)
    return widened(operand).data.astype(np.float64)


def create_dot(_self: Any, a: Any, b: Any, d: Any, *_rest: Any) -> Any:
    """In the place of `InterpreterBuilder.create_dot`."""
    left, right = (_numbers(one) for one in (a, b))
    total = d.data.astype(np.float32)
    for k in range(0, left.shape[-1], _GROUP):
        part = left[..., k : k + _GROUP] @ right[..., k : k + _GROUP, :]
        total = (total + part).astype(np.float32)
    return interpreter.TensorHandle(total, d.dtype.scalar)
