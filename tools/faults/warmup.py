"""Faults of warm-up: kernels that would be compiled while requests wait."""

from faults.fault import Fault

_MANY = (
    "tests/engine/runner/test_warmup.py"
    "::test_many_rows_beside_prompts_are_warm_where_alone_they_come_quantized",
)
_RUN = ("tests/engine/runner/test_warmup.py::test_a_long_run_launches_nothing_that_was_not_warm",)
_CLASSES = (
    "tests/engine/runner/test_warmup.py"
    "::test_each_number_of_rows_that_the_vector_kernel_takes_is_a_class_of_its_own",
)

FAULTS = (
    Fault(
        "warm-up: decode rows beside prompts are left out",
        "engine/runner/warmup.py",
        "        yield WarmStep(rows, (1,), longest)\n",
        "        yield WarmStep(1, (1,), longest)\n",
        _MANY,
    ),
    Fault(
        "warm-up: what many rows attend by beside prompts passes for what is quantized alone",
        "kernels/attention/decode_launch.py",
        "alone or not shape.columns, *taken",
        "True, *taken",
        _MANY,
    ),
    Fault(
        "warm-up: short contexts are left out",
        "engine/runner/warmup.py",
        "            yield WarmStep(0, longer, max(longer))\n",
        "            pass\n",
        _RUN,
    ),
    Fault(
        "warm-up: penalties of a mixed step are left out",
        "engine/runner/warmup.py",
        "    yield WarmStep(0, (1,), longest, Needs(adjusts=True))\n",
        "",
        _RUN,
    ),
    Fault(
        "warm-up: blocks are not copied",
        "engine/runner/copies.py",
        "            ops.copy_blocks(cache.k, cache.v, here, here)\n",
        "            pass\n",
        _RUN,
    ),
    Fault(
        "warm-up: copies are compiled for each place in the upload",
        "kernels/state/copy_blocks.py",
        '    do_not_specialize_on_alignment=["sources_ptr", "targets_ptr"],\n',
        "",
        _RUN,
    ),
    Fault(
        "warm-up: kernels of many rows belong to no step",
        "kernels/launches.py",
        "        names |= tall_launch.kernels(step.tokens)\n",
        "        pass\n",
        ("tests/kernels/linear/test_tall_launch.py::test_warm_up_tells_a_step_that_launches_them",),
    ),
    Fault(
        "warm-up: attention of three groups a program has the name of one",
        "kernels/attention/prefill_launch.py",
        "one.tiles, one.groups, one.split",
        "one.tiles, one.split",
        (
            "tests/kernels/attention/test_prefill_choice.py"
            "::test_warm_up_tells_steps_of_one_group_and_of_three",
        ),
    ),
    Fault(
        "warm-up: three rows are taken for four",
        "kernels/linear/tuning.py",
        "    if rows <= _EXACT_ROWS:",
        "    if rows <= 2:",
        _CLASSES,
    ),
)
