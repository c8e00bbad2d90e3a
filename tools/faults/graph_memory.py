"""Faults of the memory that a start takes: the largest step, captured graphs, loading."""

from faults.fault import Fault

_HERE = "tests/engine/startup/test_graph_memory.py::test_"
_STEP = "tests/engine/startup/test_largest_step.py::test_"

FAULTS = (
    Fault(
        "graph-memory: cache blocks take what graphs will need",
        "engine/startup/sizing.py",
        "- others - peak_bytes - graphs\n",
        "- others - peak_bytes\n",
        (_HERE + "the_budget_leaves_room_for_graphs",),
    ),
    Fault(
        "graph-memory: logits are forgotten",
        "engine/startup/sizing.py",
        " + 3 * rows * model.vocab_size * 4\n",
        "\n",
        (_HERE + "it_grows_with_what_is_captured",),
    ),
    Fault(
        "a start: what loaders hold counts as the largest step's, by chance",
        "engine/startup/largest_step.py",
        "    if before is None:\n",
        "    if before is not None:\n",
        (_STEP + "the_cache_s_size_does_not_depend_on_what_loaders_hold",),
    ),
    Fault(
        "a start: what loaders take besides counts as others', by chance",
        "engine/startup/sizing.py",
        "others = others_now if others is None else others",
        "others = others_now",
        (_STEP + "the_cache_s_size_does_not_depend_on_what_loaders_hold",),
    ),
    Fault(
        "a start: a loader's want of memory comes bare",
        "engine/startup/build_rank.py",
        'with sizing.room_for("loading the weights", LOADING_BYTES, basis.device, hint):',
        "if hint:",
        (_STEP + "a_loader_s_want_of_memory_is_refused_clearly",),
    ),
)
