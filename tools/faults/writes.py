"""Faults of what a step writes ahead of its rows, at once."""

from faults.fault import Fault

_HERE = "tests/engine/runner/test_writes.py::test_"

FAULTS = (
    Fault(
        "writes: padding is another's slot",
        "engine/runner/slots.py",
        "[self.null_slot * width] * padding",
        "[0] * padding",
        (_HERE + "writes_at_once_are_those_one_by_one",),
    ),
    Fault(
        "writes: padding changes the null slot",
        "engine/runner/state_writes.py",
        "SamplingNumbers()",
        "SamplingNumbers(top_p=0.5)",
        (_HERE + "padding_leaves_the_null_slot_as_it_is",),
    ),
    Fault(
        "writes: ending ids and counts are left out where all is written at once",
        "engine/runner/state_writes.py",
        "        if self._state.writes_more(plan.admitted[0]):\n",
        "        if False:\n",
        (_HERE + "whoever_needs_more_written_is_written_one_by_one",),
    ),
    Fault(
        "writes: where it lies depends on how much is written",
        "engine/runner/state_writes.py",
        "plan.block_updates, key.updates)",
        "plan.block_updates)",
        (_HERE + "writes_at_once_are_those_one_by_one",),
    ),
    Fault(
        "writes: the rows of the last step are gone once somebody is admitted",
        "engine/runner/state_writes.py",
        "rows + self._nobody[len(rows) :]",
        "self._nobody",
        (_HERE + "writes_at_once_are_those_one_by_one",),
    ),
    Fault(
        "writes: the rows of an earlier step are written once somebody is admitted",
        "engine/runner/state_writes.py",
        "True, slots, None",
        "True, slots, self._padded",
        (_HERE + "writes_at_once_are_those_one_by_one",),
    ),
    Fault(
        "writes: one admission's numbers are packed in another order",
        "engine/runner/slots.py",
        "*_ints(one), *_floats(one)",
        "*_ints(one)[::-1], *_floats(one)",
        (_HERE + "each_number_of_a_slot_stands_under_its_name",),
    ),
    Fault(
        "staging: what stands behind an array in a record is not aligned",
        "engine/runner/staging.py",
        "            size = -(-end // _ALIGN) * _ALIGN\n            form",
        "            size = end\n            form",
        (_HERE + "a_record_is_its_arrays_one_by_one",),
    ),
    Fault(
        "staging: what comes behind lies where what is ahead has ended",
        "engine/runner/staging.py",
        "self._target[self._ahead - self._fixed :]",
        "self._target",
        (_HERE + "what_is_put_ahead_moves_nothing_and_has_one_address_a_size",),
    ),
    Fault(
        "staging: the buffer of a captured copy is filled before that has ended",
        "engine/runner/staging.py",
        "            self._kept.copied()\n",
        "",
        (
            "tests/engine/runner/test_gpu_writes.py"
            "::test_a_captured_copys_buffer_is_not_written_while_it_is_read",
        ),
    ),
    Fault(
        "staging: a buffer is not asked for though only earlier steps' results have come",
        "engine/runner/staging.py",
        "self._next_step[self._turn] = self._steps.asked + 1",
        "self._next_step[self._turn] = self._steps.asked",
        (_HERE + "a_buffer_is_asked_for_unless_the_results_of_a_later_step_have_come",),
    ),
    Fault(
        "writes: a slot's numbers stand under other names",
        "engine/runner/slots.py",
        "self.repetition, self.presence, self.frequency",
        "self.repetition, self.frequency, self.presence",
        (_HERE + "each_number_of_a_slot_stands_under_its_name",),
    ),
)
