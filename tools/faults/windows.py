"""Faults of sliding windows: what is seen, what is given back, and what a hit needs."""

from faults.fault import Fault

_POOL = "tests/engine/scheduling/test_windows.py::test_"
_TWO = "tests/engine/scheduling/test_two_pools.py::test_"
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
    Fault(
        "windows: the two keys of Qwen2's layers are read a layer off",
        "engine/model/hf_windows.py",
        "_FULL if layer < first else _SLIDING",
        "_FULL if layer <= first else _SLIDING",
        (
            "tests/engine/model/test_window_configs.py::test_windows_are_read_as_transformers_reads_them",
        ),
    ),
    Fault(
        "windows: all layers take the table of those that see all",
        "engine/model/forward_batch.py",
        "        windowed = zip(repeat(batch.windowed), *caches, strict=False)\n",
        "        windowed = zip(repeat(batch), *caches, strict=False)\n",
        (_TWO + "a_prompt_longer_than_the_cache_of_windows_is_served",),
    ),
    Fault(
        "windows: layers that see all lose what windows passed",
        "engine/scheduling/two_pools.py",
        "        return self._window_pool, request.window_table\n",
        "        return self._state.pool, request.block_table\n",
        (_TWO + "blocks_that_windows_passed_return_and_full_layers_keep_theirs",),
    ),
    Fault(
        "windows: nobody looks whether the window's pool has blocks left",
        "engine/scheduling/two_pools.py",
        "return self.pool.num_free >= needed and self.window_pool.num_free >= windowed\n",
        "return self.pool.num_free >= needed\n",
        (_TWO + "where_windows_have_few_blocks_others_wait_or_begin_again",),
    ),
    Fault(
        "windows: a hit goes as far as is known where all is seen",
        "engine/scheduling/two_pools.py",
        "        columns = len(windowed)\n",
        "        columns = len(full)\n"
        "        windowed = [*windowed, *[0] * (columns - len(windowed))]\n",
        (_TWO + "a_hit_ends_where_both_caches_allow",),
    ),
    Fault(
        "windows: the beginning of a block is copied for some layers alone",
        "engine/runner/copies.py",
        "        ops.copy_blocks(kv.window.k, kv.window.v, source, target)\n",
        "        pass\n",
        (_TWO + "a_hit_ends_where_both_caches_allow",),
    ),
    Fault(
        "windows: blocks of a request that goes stay in the window's pool",
        "engine/scheduling/two_pools.py",
        "        self.window_pool.release(request.window_table)\n",
        "",
        (_TWO + "blocks_that_windows_passed_return_and_full_layers_keep_theirs",),
    ),
    Fault(
        "windows: a block is told as stored before both caches hold it",
        "engine/scheduling/paired_cache.py",
        "        self._mine[block_hash] += 1\n"
        "        if self._mine[block_hash] <= self._theirs[block_hash]:\n",
        "        self._mine[block_hash] += 1\n        if True:\n",
        (_TWO + "events_tell_what_both_caches_hold",),
    ),
    Fault(
        "windows: the cache of windows is left out of what the cache takes",
        "engine/startup/window_share.py",
        "        return (num_blocks + 1) * self.full_bytes + windowed * self.window_bytes\n",
        "        return (num_blocks + 1) * self.full_bytes\n",
        ("tests/engine/startup/test_window_share.py::test_an_engine_has_the_caches_of_its_plan",),
    ),
)
