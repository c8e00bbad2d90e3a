"""Faults of the memory that captured graphs take."""

from faults.fault import Fault

_HERE = "tests/engine/startup/test_graph_memory.py::test_"

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
)
