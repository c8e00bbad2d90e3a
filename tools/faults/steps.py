"""Faults of steps in flight, of padded rows, and of an engine under load."""

from faults.fault import Fault, regression

TRAFFIC = (
    "tests/engine/scheduling/test_scheduler_properties.py"
    "::test_random_traffic_neither_leaks_nor_hangs_nor_corrupts"
)
PADDED = ("tests/engine/test_equivalences.py::test_padding_writes_nowhere_that_a_request_has_left",)
REPLAYED = (
    "tests/engine/test_equivalences.py::test_padded_steps_are_replayed_with_fewer_rows_"
    "than_they_hold",
)
SHORT = (
    "tests/engine/scheduling/test_scheduler_properties.py"
    "::test_rows_that_only_go_on_are_as_if_nothing_were_known_of_them",
)
PACING = ("tests/engine/client/test_pacing.py", "tests/engine/client/test_new_calls.py")

OVERLAP = (
    Fault(
        "mini-sglang-111: an aborted request's blocks go at once, and again",
        "engine/scheduling/scheduler_state.py",
        "        if request.in_flight == 0:\n            self._vacate(request)\n",
        "        self._vacate(request)\n",
        regression("mini_sglang_111_abort_of_a_request_in_the_step_in_flight"),
    ),
    Fault(
        "sglang-18803: results of before a preemption count",
        "engine/scheduling/completion.py",
        "elif row.epoch != request.epoch:",
        "elif row.epoch > request.epoch:",
        (TRAFFIC,),
    ),
    Fault(
        "steps: a block that a row has filled by going on is not made known",
        "engine/scheduling/completion.py",
        "            or not end % self._block_size\n",
        "",
        SHORT,
    ),
    Fault(
        "steps: a row that only goes on costs its client nothing",
        "engine/scheduling/scheduler.py",
        "                    self._shares.charge(request.spec.client, 1, request.spec.user)\n",
        "",
        SHORT,
    ),
    Fault(
        "vllm-57355: max_num_seqs is no captured size",
        "engine/runner/graphs.py",
        "if size < max_num_seqs} | {max_num_seqs})",
        "if size <= max_num_seqs})",
        regression("vllm_57355_max_num_seqs_was_no_captured_size"),
    ),
    Fault(
        "vllm-10903: block tables are a column too narrow",
        "engine/startup/build_rank.py",
        "max_blocks = -(-basis.max_model_len // config.block_size)\n",
        "max_blocks = basis.max_model_len // config.block_size\n",
        regression("vllm_10903_longest_length_not_divisible_by_the_block_size"),
    ),
    Fault(
        "mini-sglang-56: captured sizes far apart",
        "engine/runner/graphs.py",
        "*range(8, 64, 8), *range(64, 256, 16),",
        "8, 16, 32, 64, 128,",
        regression("mini_sglang_56_padding_wasted_by_coarse_captured_sizes"),
    ),
)

PADDING = (
    Fault(
        "minivllm: padded rows of a decode step write through another's block table",
        "engine/runner/state_writes.py",
        "*[self._state.null_slot] * (padded - len(rows))]",
        "*[0] * (padded - len(rows))]",
        PADDED,
    ),
    Fault(
        "vllm-40047: padded rows of a mixed step are a request's",
        "engine/runner/inputs.py",
        "[null_slot] * (shape.prefill_rows - len(longer))",
        "[0] * (shape.prefill_rows - len(longer))",
        REPLAYED,
    ),
)

UNDER_LOAD = (
    Fault(
        "quire: gRPC's wake-up bytes pile up",
        "service/app/event_loop.py",
        "            fd.__class__ = _Wakes  # gRPC keeps the object",
        "            pass  # gRPC keeps the object",
        ("tests/service/app/test_event_loop.py",),
    ),
    Fault(
        "quire: new calls wait behind the words of many streams",
        "engine/client/pacing.py",
        "        if self._must_hold(now):\n",
        "        if len(self) < 0:\n",
        PACING,
    ),
    Fault(
        "quire: new calls keep words back for as long as they come",
        "engine/client/pacing.py",
        "return lately and now - self._burst_since < PATIENCE",
        "return lately",
        PACING,
    ),
    Fault(
        "quire: the calls of one client, one after another, are a burst",
        "engine/client/pacing.py",
        "        if self._last is stream:\n            self._last = None\n",
        "",
        PACING,
    ),
    Fault(
        "quire: a call is answered when its first words come",
        "engine/client/async_engine.py",
        "                if outputs or (is_first and error is None):\n",
        "                if outputs:\n",
        ("tests/engine/client/test_async_engine.py",),
    ),
)

FAULTS = (*OVERLAP, *PADDING, *UNDER_LOAD)
