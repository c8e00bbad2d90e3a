"""Faults of sliding windows: what is seen, what is given back, and what a hit needs."""

from faults.fault import Fault

_POOL = "tests/engine/scheduling/test_windows.py::test_"
_KERNELS = "tests/kernels/attention/test_window_attention.py::test_"

FAULTS = (
    Fault(
        "windows: a decode row sees a token too many",
        "kernels/reference/attention.py",
        "            first = max(context - window, 0) if window else 0\n",
        "            first = max(context - window - 1, 0) if window else 0\n",
        (_KERNELS + "the_twins_see_a_window",),
    ),
    Fault(
        "windows: a prompt's later tokens see what its first one sees",
        "kernels/reference/attention.py",
        "        mask.triu_(context - new - window + 1)\n",
        "        pass\n",
        (_KERNELS + "the_twins_see_a_window",),
    ),
    Fault(
        "windows: blocks are given back a token too early",
        "engine/scheduling/completion.py",
        "                self._give_back_passed(request, end + 1 - self._window)\n",
        "                self._give_back_passed(request, end + 5 - self._window)\n",
        (
            "tests/engine/test_equivalences.py::test_each_family_is_equal_to_itself[mistral-penalised]",
        ),
    ),
    Fault(
        "windows: blocks that are passed are kept",
        "engine/scheduling/completion.py",
        "        if passed > begin:\n",
        "        if passed > begin + 1000:\n",
        (_POOL + "blocks_that_are_passed_return_to_the_pool",),
    ),
    Fault(
        "windows: a hit is content with fewer blocks than a window has",
        "engine/scheduling/prefix_cache.py",
        "            if run >= min(needed, index + 1):\n",
        "            if run >= 1:\n",
        (_POOL + "without_a_block_of_the_window_there_is_no_hit",),
    ),
)
