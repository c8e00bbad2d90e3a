"""Make Triton's interpreter treat bfloat16 as numbers.

The interpreter of Triton 3.4 to 3.9 keeps bf16 as raw 16-bit patterns: dots, arithmetic and
comparisons on them are garbage, and fp32 is truncated rather than rounded. `install()` widens bf16
operands to fp32 and rounds results to nearest even. Reductions over bf16 are not mended: kernels
upcast right after a load, and keep bf16 for the operands of `tl.dot` alone.
"""

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def widened(handle: Any) -> Any:
    """A bf16 handle as fp32; any other handle as it is."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


def _rounded(values: np.ndarray) -> np.ndarray:
    """fp32 values as bf16 bits, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), np.uint16(0x7FC0), bits.astype(np.uint16))


def install() -> None:
    """Mend the interpreter of this process; call once, before any kernel runs."""
    builder = interpreter.InterpreterBuilder
    dot, binary, unary, extend, truncate = (
        builder.create_dot,
        builder.binary_op,
        builder.unary_op,
        builder.create_fp_ext,
        builder.create_fp_trunc,
    )

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), d, *rest)

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if tl.bfloat16 not in (lhs.dtype.scalar, rhs.dtype.scalar):
            return binary(self, lhs, rhs, op)
        out = op(widened(lhs).data, widened(rhs).data)
        if out.dtype == np.bool_:
            return interpreter.TensorHandle(out, tl.int1)
        return interpreter.TensorHandle(_rounded(out), tl.bfloat16)

    def unary_op(self: Any, arg: Any, op: Any) -> Any:
        if arg.dtype.scalar != tl.bfloat16:
            return unary(self, arg, op)
        return interpreter.TensorHandle(_rounded(op(widened(arg).data)), tl.bfloat16)

    def create_fp_ext(self: Any, src: Any, dst: Any) -> Any:
        if src.dtype.scalar == tl.bfloat16 and dst.scalar == tl.float32:
            return widened(src)
        return extend(self, src, dst)

    def create_fp_trunc(self: Any, src: Any, dst: Any) -> Any:
        if dst.scalar == tl.bfloat16 and src.dtype.scalar in (tl.float32, tl.float64):
            return interpreter.TensorHandle(_rounded(src.data.astype(np.float32)), tl.bfloat16)
        return truncate(self, src, dst)

    def get_bf16(_self: Any, value: float) -> Any:
        return interpreter.TensorHandle(_rounded(np.array([value], np.float32)), tl.bfloat16)

    if not hasattr(builder, "get_bf16"):  # what a descriptor pads with; missing before 3.8
        builder.get_bf16 = get_bf16
    builder.create_dot = create_dot
    builder.binary_op = binary_op
    builder.unary_op = unary_op
    builder.create_fp_ext = create_fp_ext
    builder.create_fp_trunc = create_fp_trunc
