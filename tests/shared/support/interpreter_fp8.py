"""Make Triton's interpreter round to e4m3 as a GPU does.

The interpreter rounds a tie up and loses the carry of a significand that overflows. `install()`
leaves every conversion from and to e4m3 to PyTorch, which rounds ties to even; what is above the
largest number becomes the largest, as in the GPU's instruction. And a fused product and sum
is rounded once (the interpreter rounds between the two), by which a quotient is the division's.
"""

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_LARGEST = 448.0


def _narrowed(wide: np.ndarray) -> np.ndarray:
    numbers = torch.from_numpy(np.ascontiguousarray(wide, np.float32)).clamp(-_LARGEST, _LARGEST)
    return numbers.to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def _widened(narrow: np.ndarray) -> np.ndarray:
    bits = torch.from_numpy(np.ascontiguousarray(narrow).view(np.uint8))
    return bits.view(torch.float8_e4m3fn).float().numpy()


def install() -> None:
    """Mend the interpreter of this process; call once, before any kernel runs."""
    original = interpreter._convert_float

    def convert(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if target == tl.float8e4nv and source == tl.float32:
            return _narrowed(data).reshape(data.shape)
        if source == tl.float8e4nv and target in (tl.float32, tl.float16, tl.bfloat16):
            wide = _widened(data).reshape(data.shape)
            if target == tl.bfloat16:  # kept as bits; every e4m3 number is one of bf16
                return (wide.view(np.uint32) >> 16).astype(np.uint16)
            return wide if target == tl.float32 else wide.astype(np.float16)
        return original(data, source, target, rounding)

    def create_fma(_self: Any, x: Any, y: Any, z: Any) -> Any:
        exact = x.data.astype(np.float64) * y.data + z.data
        return interpreter.TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)

    interpreter._convert_float = convert
    interpreter.InterpreterBuilder.create_fma = create_fma
