"""Faults of bounds: steps larger than a kernel's grid."""

from faults.fault import Fault

_HERE = "tests/engine/startup/test_step_limits.py::test_"

FAULTS = (
    Fault(
        "step-limits: tokens of a step are not bounded",
        "engine/config.py",
        "self.max_num_batched_tokens, MAX_STEP_TOKENS)",
        "self.max_num_batched_tokens, _MAX_INT32)",
        (_HERE + "an_option_has_an_upper_bound",),
    ),
    Fault(
        "step-limits: a tile for each row is forgotten",
        "engine/startup/sizing.py",
        "    most = (MAX_STEP_TOKENS - config.max_num_seqs) * tokens_a_tile\n",
        "    most = MAX_STEP_TOKENS * tokens_a_tile\n",
        (_HERE + "tiles_of_a_step_are_bounded",),
    ),
    Fault(
        "step-limits: on a CPU a stream waits for the steps of a GPU",
        "engine/startup/build_engine.py",
        'config.step_tokens(cpu=rank.model.device.type == "cpu")',
        "config.step_tokens()",
        (_HERE + "a_stream_waits_for_short_steps_on_a_cpu",),
    ),
)
