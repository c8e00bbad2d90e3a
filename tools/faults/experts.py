"""Faults of mixtures of experts on a GPU."""

from faults.fault import Fault

INTERPRETED = (
    "tests/kernels/test_interpreted.py::test_triton_kernels_under_the_interpreter[experts]",
)
WARM = "tests/engine/runner/test_warmup.py::test_a_long_run_launches_nothing_that_was_not_warm"

FAULTS = (
    Fault(
        "experts: of equal scores the highest expert wins",
        "kernels/experts/routing.py",
        "share, best = tl.max(left, 1, return_indices=True, return_indices_tie_break_left=True)",
        "share, best = tl.max(tl.flip(left, 1), 1, return_indices=True)\n"
        "        best = BLOCK_E - 1 - best",
        INTERPRETED,
    ),
    Fault(
        "experts: a token without scores takes experts that are not there",
        "kernels/experts/routing.py",
        "left = tl.where(e < E, left, -3.0)",
        "left = tl.where(e < E, left, 0.0)",
        INTERPRETED,
    ),
    Fault(
        "experts: a chunk forgets those before it",
        "kernels/experts/sorting.py",
        "before += tl.sum(tl.where(c < chunk, counts, 0), 0)",
        "before += 0",
        INTERPRETED,
    ),
    Fault(
        "experts: a tile runs over into the next expert",
        "kernels/experts/sorting.py",
        "tl.minimum(at + BLOCK_M, ends)",
        "at + BLOCK_M",
        INTERPRETED,
    ),
    Fault(
        "experts: what is made goes where it was made",
        "kernels/experts/products.py",
        "to = (at if SILU else pair).to(tl.int64)",
        "to = at.to(tl.int64)",
        INTERPRETED,
    ),
    Fault(
        "experts: a block of columns begins with the sums of the one before",
        "kernels/experts/products_fp8.py",
        "                    acc = tl.zeros_like(acc)\n",
        "                    acc += 0.0\n",
        INTERPRETED,
    ),
    Fault(
        "experts: tiles of downs are as high as those of gates and ups",
        "kernels/experts/mixing.py",
        "mix.block_m, mix.down_m, pdl",
        "mix.block_m, pdl",
        ("tests/kernels/experts/test_hopper_fp8.py",),
    ),
    Fault(
        "experts: warm-up does not know of them",
        "engine/runner/warmup.py",
        "        mixture=bounds.mixture,\n",
        "        mixture=None,\n",
        (WARM,),
    ),
    Fault(
        "experts: those that compile ahead meet the first layer alone",
        "engine/runner/compile_worker.py",
        "num_layers=2 if dense else 1, experts=experts",
        "num_layers=1, experts=experts",
        ("tests/engine/runner/test_compile_ahead.py::test_a_worker_meets_layers_of_each_kind",),
    ),
    Fault(
        "experts: many rows are chosen for by larger tiles",
        "kernels/experts/routing.py",
        "BLOCK_T=1,",
        "BLOCK_T=1 if few else 4,",
        (
            "tests/kernels/experts/test_one_order.py::test_a_softmax_and_a_weighted_sum_have_one_kernel_each",
        ),
    ),
)
