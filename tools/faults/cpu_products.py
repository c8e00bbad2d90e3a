"""Faults of the CPU's products and of int8 weights."""

from faults.fault import Fault

PRODUCTS = "tests/kernels/cpu/test_cpu_products.py::test_"
LIBRARY = "tests/kernels/cpu/test_cpu_library.py::test_"
INT8 = "tests/engine/model/test_int8.py::test_"

FAULTS = (
    Fault(
        "quire: a few rows of a CPU product are summed in another order",
        "kernels/cpu/tile.h",
        "    UNROLL for (int r = 0; r < rows; r++) out[r] = totals(sums[r]);",
        "    UNROLL for (int r = 0; r < rows; r++)\n"
        "        out[r] = rows > 1 ? _mm_add_ps(totals(sums[r]), _mm_set1_ps(1e-6f))"
        " : totals(sums[r]);",
        (PRODUCTS + "a_rows_bits_are_its_own",),
    ),
    Fault(
        "quire: the last columns of K are left out of a CPU product",
        "kernels/cpu/tile.h",
        "    if (whole < k) {",
        "    if (0) {",
        (PRODUCTS + "it_is_the_product",),
    ),
    Fault(
        "quire: a broken library is loaded",
        "kernels/cpu/library.py",
        "    if kept.is_whole(name) and kept",
        "    if kept",
        (LIBRARY + "what_is_whole_is_kept_and_what_is_broken_is_made_again",),
    ),
    Fault(
        "quire: a library that others may write is loaded",
        "kernels/cpu/library.py",
        "(name) and kept.is_ours(name):",
        "(name):",
        (LIBRARY + "what_others_may_write_is_not_loaded",),
    ),
    Fault(
        "quire: replicas with int8 weights and without have one fingerprint",
        "engine/model/base.py",
        'self.weights_digest + (":int8" if self.int8 else "")',
        "self.weights_digest",
        (INT8 + "it_serves_another_function_and_says_so",),
    ),
    Fault(
        "quire: NaN becomes an int8",
        "engine/weights/loader.py",
        "return part.scale if isinstance(part, RowScaled) else part",
        "return part.data if isinstance(part, RowScaled) else part",
        (INT8 + "a_row_that_is_not_finite_is_refused_by_name",),
    ),
)
