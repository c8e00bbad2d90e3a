"""Faults of FP8 products on a GPU."""

from faults.fault import Fault

INTERPRETED = (
    "tests/kernels/test_interpreted.py::test_triton_kernels_under_the_interpreter[linear]",
)
PRODUCTS = "tests/kernels/linear/test_fp8_linear.py::test_"

FAULTS = (
    Fault(
        "fp8 products: rows of one token beside prompts leave their results quantized",
        "engine/model/layers/attention.py",
        "*ones, out=out[:decode])",
        "*ones, out=out[:decode], narrow=narrow)",
        (
            "tests/engine/runner/test_paged_attention.py"
            "::test_what_is_written_beside_prompts_is_not_narrow",
        ),
    ),
    Fault(
        "fp8 products: a group of zeros is divided by zero",
        "kernels/fp8_groups.py",
        "largest == 0.0",
        "largest < 0.0",
        INTERPRETED,
    ),
    Fault(
        "fp8 products: a quotient is a product with the reciprocal",
        "kernels/fp8_groups.py",
        "return tl.fma(tl.fma(-about, divisor[:, None], y), inverse[:, None], about)",
        "return about",
        INTERPRETED,
    ),
    Fault(
        "fp8 products: tiles of the second block take the scales of the first",
        "kernels/linear/fp8_tiles.py",
        "at_ws = ws_ptr + tile * BLOCK_N // 128 * GROUPS + begin",
        "at_ws = ws_ptr + begin",
        INTERPRETED,
    ),
    Fault(
        "fp8 products: up has the scales of gate",
        "kernels/linear/fp8_tiles.py",
        "at_us = at_ws + COLUMNS // 128 * GROUPS",
        "at_us = at_ws",
        INTERPRETED,
    ),
    Fault(
        "fp8 products: one row takes the scales of the first block",
        "kernels/linear/fp8_gemv.py",
        "block = (begin + tl.minimum(first, N - 1)) // 128",
        "block = begin // 128",
        INTERPRETED,
    ),
    Fault(
        "fp8 products: a program of several tiles computes the first one twice",
        "kernels/linear/fp8_gemv.py",
        "        w, ws = next_w, next_ws",
        "        ws = next_ws",
        INTERPRETED,
    ),
    Fault(
        "fp8 products: one row's columns meet the weight's in another order",
        "kernels/linear/fp8_gemv.py",
        "x2, x6 = p2.split()",
        "x6, x2 = p2.split()",
        INTERPRETED,
    ),
    Fault(
        "fp8 products: SiLU·mul is quantized without being rounded before",
        "kernels/linear/fp8_quantize.py",
        "        y = gate / (1.0 + tl.exp(-gate)) * up\n"
        "        y = y.to(x_ptr.dtype.element_ty).to(tl.float32)\n",
        "        y = gate / (1.0 + tl.exp(-gate)) * up\n",
        INTERPRETED,
    ),
    Fault(
        "fp8 products: a kernel for each number of rows",
        "kernels/linear/fp8_tuning.py",
        "    return _fitting(_tile(n, k, bucket, silu), silu, shared)\n",
        "    return _fitting(_tile(n, k, bucket, silu), silu, shared >> rows % 3)\n",
        (PRODUCTS + "rows_of_one_class_take_one_kernel",),
    ),
    Fault(
        "fp8 products: half of K has an odd number of blocks, which are taken in pairs",
        "kernels/linear/fp8_tuning.py",
        "n % 128 or k % 512",
        "n % 128 or k % 256",
        ("tests/kernels/linear/test_fp8_hopper.py",),
    ),
    Fault(
        "fp8 products: without room, activations and weight have each other's kind of scales",
        "kernels/linear/cublas_lt.py",
        "(_SCALES_OF_A, _BLOCKS), (_SCALES_OF_B, _GROUPS)",
        "(_SCALES_OF_A, _GROUPS), (_SCALES_OF_B, _BLOCKS)",
        ("tests/kernels/linear/test_cublas_lt.py",),
    ),
    Fault(
        "fp8 products: without room, all of a size have the scales of the first",
        "kernels/linear/cublas_lt.py",
        "            self._scale(plan.description, scales)\n",
        "",
        ("tests/kernels/linear/test_cublas_lt.py",),
    ),
    Fault(
        "fp8 products: a size that is refused without room is asked for again in each call",
        "kernels/linear/cublas_lt.py",
        "            if size not in self._plans:\n",
        "            if self._plans.get(size) is None:\n",
        ("tests/kernels/linear/test_cublas_lt.py",),
    ),
)
