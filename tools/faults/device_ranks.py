"""Faults of ranks that have a GPU each."""

from faults.fault import Fault

KERNEL = ("tests/kernels/test_interpreted.py::test_triton_kernels_under_the_interpreter[linear]",)
DEVICES = "tests/engine/parallel/test_gpu_rank_starts.py::test_"

FAULTS = (
    Fault(
        "device ranks: an inbox is not emptied when it was read",
        "kernels/linear/all_reduce_norm.py",
        "    tl.store(places, tl.full(got.shape, EMPTY, tl.int32), mask=mask)\n",
        "",
        KERNEL,
    ),
    Fault(
        "device ranks: the kernel adds the others in the opposite order",
        "kernels/linear/all_reduce_norm.py",
        "    for p in tl.static_range(1, WORLD):\n",
        "    for p in tl.static_range(WORLD - 1, 0, -1):\n",
        KERNEL,
    ),
    Fault(
        "device ranks: each decides for itself whether it has the kernel",
        "engine/parallel/gpu_exchange.py",
        "        agreed = bool(everywhere.all())\n",
        "        agreed = inbox is not None\n",
        (DEVICES + "else_nccl_is_all_there_is_and_one_line_says_so",),
    ),
    Fault(
        "device ranks: a wait that was given up is not told",
        "engine/runner/results.py",
        "wanted, tokens, logprobs, self._check, *told)",
        "wanted, tokens, logprobs, lambda: None, *told)",
        (DEVICES + "a_wait_that_was_given_up_is_told_with_the_step",),
    ),
    Fault(
        "device ranks: NCCL may use multicast",
        "engine/parallel/nccl.py",
        '    "NCCL_NVLS_ENABLE": "0",  # multicast\n',
        "",
        (DEVICES + "all_ranks_come_by_one_id_and_multicast_is_off",),
    ),
    Fault(
        "device ranks: more ranks than GPUs are tried",
        "engine/startup/sizing.py",
        "        if size > max(there, 1):\n",
        "        if size > 99:\n",
        ("tests/engine/parallel/test_ranks.py::test_ranks_have_a_gpu_each",),
    ),
    Fault(
        "device ranks: large steps are not warm",
        "kernels/launches.py",
        '        names.add(("exchange", all_reduce_norm.kind(step.tokens, ranks)))\n',
        '        names.add(("exchange", "one-shot"))\n',
        ("tests/engine/runner/test_warmup.py::test_ranks_warm_both_kinds_of_exchange",),
    ),
)
