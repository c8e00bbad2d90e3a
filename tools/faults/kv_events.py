"""Faults of what is told of the cached blocks: one left out, one too many, a gap gone on over."""

from faults.fault import Fault

_CACHE = "engine/scheduling/prefix_cache.py"
_EVENTS = "engine/scheduling/kv_events.py"
_WATCH = "engine/loop/kv_watch.py"
_HUB = "engine/client/kv_hub.py"


def _told(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/engine/scheduling/test_kv_events.py::test_{name}" for name in names)


def _heard(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/engine/client/test_kv_hub.py::test_{name}" for name in names)


FAULTS = (
    Fault(
        "kv events: a forgotten block is not told of",
        _CACHE,
        "            self.log.removed(block_hash)\n",
        "            pass\n",
        _told("events_behind_a_snapshot_give_what_the_cache_holds"),
    ),
    Fault(
        "kv events: a first block names the root as its parent",
        _CACHE,
        'before = b"" if parent == root else parent',
        "before = parent",
        _told("a_snapshot_has_parents_before_their_children"),
    ),
    Fault(
        "kv events: children come before their parents",
        _EVENTS,
        "    return tuple(ordered)\n",
        "    return tuple(reversed(ordered))\n",
        _told("a_snapshot_has_parents_before_their_children"),
    ),
    Fault(
        "kv events: they are recorded though nobody watches",
        _WATCH,
        "        self._cache.log = None\n        self._told.clear()\n",
        "        self._told.clear()\n",
        _told("nothing_is_recorded_while_nobody_watches"),
    ),
    Fault(
        "kv events: numbers go on over what was not recorded",
        _WATCH,
        "            self._sequence += 1\n            self._cache.log = KvLog()\n",
        "            self._cache.log = KvLog()\n",
        _told("nothing_is_recorded_while_nobody_watches"),
    ),
    Fault(
        "kv events: a gap is gone on over",
        _HUB,
        "return self._sequence is None or batch.sequence == self._sequence + 1",
        "return True",
        _heard("a_gap_makes_all_start_over_from_a_snapshot"),
    ),
    Fault(
        "kv events: a slow watcher's queue grows",
        _HUB,
        "            self.start_over()\n            return False\n",
        "            pass\n",
        _heard("a_slow_watcher_starts_over_and_holds_up_nobody"),
    ),
    Fault(
        "kv events: the engine records on when the last watcher has gone",
        _HUB,
        "                self._forget()\n                self._end()\n",
        "                self._forget()\n",
        _heard("a_snapshot_comes_first_then_each_change_and_the_end_is_told"),
    ),
)
