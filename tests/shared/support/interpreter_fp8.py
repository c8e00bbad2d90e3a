"""Make Triton's interpreter round to e4m3 as a GPU does.

The interpreter rounds a tie up and loses the carry of a significand that overflows. `install()`
leaves every conversion from and to e4m3 to PyTorch, which rounds ties to even; what is above the
largest number becomes the largest, as in the GPU's instruction. And a fused product and sum
is rounded once (the interpreter rounds between the two), by which a quotient is the division's.
Of machine code it knows two pieces: 16 products of fp8_gemv.py, and one column of two of pairs.py.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_LARGEST = 448.0


def _narrowed(wide: np.ndarray) -> np.ndarray:
    numbers = torch.from_numpy(np.ascontiguousarray(wide, np.float32)).clamp(-_LARGEST, _LARGEST)
    return numbers.to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def widened(narrow: np.ndarray) -> np.ndarray:
    """The bits of e4m3 numbers as fp32."""
    bits = torch.from_numpy(np.ascontiguousarray(narrow).view(np.uint8))
    return bits.view(torch.float8_e4m3fn).float().numpy()


@dataclass(frozen=True)
class _Results:
    """What an operation of one result gives."""

    result: Any

    def get_result(self, _index: int) -> Any:
        return self.result


def _piece(values: list[Any]) -> np.ndarray:
    """16 products, in fp16, even and odd columns apart. values: 4 times four e4m3, 8 pairs of x."""
    words = np.stack([value.data for value in values], -1).astype(np.int32)
    shape = (*words.shape[:-1], 8, 2)
    w = widened(words[..., :4]).reshape(shape).astype(np.float64)
    x = np.ascontiguousarray(words[..., 4:]).view(np.float16).reshape(shape)
    sums = np.zeros((*shape[:-2], 2), np.float16)
    for pair in range(8):
        sums = (w[..., pair, :] * x[..., pair, :] + sums).astype(np.float16)
    return sums.astype(np.float32).sum(-1)


def _column(pairs: np.ndarray, odd: bool) -> np.ndarray:
    """The even or the odd numbers of pairs of e4m3, in fp16."""
    column = pairs.view(np.uint8)[..., int(odd) :: 2]
    return widened(column).reshape(pairs.shape).astype(np.float16)


def install() -> None:
    """Mend the interpreter of this process; call once, before any kernel runs."""
    original = interpreter._convert_float

    def convert(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if target == tl.float8e4nv and source == tl.float32:
            return _narrowed(data).reshape(data.shape)
        if source == tl.float8e4nv and target in (tl.float32, tl.float16, tl.bfloat16):
            wide = widened(data).reshape(data.shape)
            if target == tl.bfloat16:  # kept as bits; every e4m3 number is one of bf16
                return (wide.view(np.uint32) >> 16).astype(np.uint16)
            return wide if target == tl.float32 else wide.astype(np.float16)
        return original(data, source, target, rounding)

    def create_fma(_self: Any, x: Any, y: Any, z: Any) -> Any:
        exact = x.data.astype(np.float64) * y.data + z.data
        return interpreter.TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)

    def create_inline_asm(
        _self: Any, code: str, _constraints: str, values: list[Any], *_options: Any
    ) -> Any:
        if code.startswith("mov"):
            return _Results(values[0])
        assert "cvt.rn.f16x2.e4m3x2" in code
        if len(values) == 1:
            column = _column(values[0].data, odd="$0, odd" in code)
            return _Results(interpreter.TensorHandle(column, tl.float16))
        return _Results(interpreter.TensorHandle(_piece(values), tl.float32))

    interpreter._convert_float = convert
    interpreter.InterpreterBuilder.create_inline_asm = create_inline_asm
    interpreter.InterpreterBuilder.create_fma = create_fma
