"""Faults around logits that are no numbers, and parameters that fp32 cannot hold."""

from faults.fault import Fault

_HERE = "tests/engine/runner/test_not_a_number.py::test_"
_ALONE = (_HERE + "a_row_without_numbers_ends_alone",)

FAULTS = (
    Fault(
        "not-a-number: NaN is an id like any other",
        "kernels/reference/sampling.py",
        "    return tokens.masked_fill_(~best.isfinite(), -1)\n",
        "    return tokens\n",
        _ALONE,
    ),
    Fault(
        "not-a-number: a drawn row forgets that it has no token",
        "kernels/reference/sampling.py",
        "    hot = ((temperature[slots] > 0) & (tokens >= 0)).nonzero()[:, 0]\n",
        "    hot = (temperature[slots] > 0).nonzero()[:, 0]\n",
        _ALONE,
    ),
    Fault(
        "not-a-number: the request goes on",
        "engine/scheduling/completion.py",
        "                if token < 0:",
        "                if False:",
        _ALONE,
    ),
    Fault(
        "not-a-number: nobody counts",
        "engine/scheduling/completion.py",
        "                    counters.not_a_number += 1\n",
        "",
        _ALONE,
    ),
    Fault(
        "not-a-number: the device is fed what is no token",
        "kernels/reference/state.py",
        "    tokens = tokens.clamp(min=0)\n    last_token",
        "    last_token",
        (_HERE + "a_slot_never_holds_what_is_no_token",),
    ),
    Fault(
        "not-a-number: a temperature that fp32 cannot divide by",
        "engine/runner/slots.py",
        "        0.0 if cold else min(s.temperature, _MAX_TEMPERATURE),\n",
        "        s.temperature,\n",
        (
            _HERE + "no_temperature_is_greedy",
            _HERE + "endless_temperature_is_uniform_over_what_is_kept",
        ),
    ),
    Fault(
        "not-a-number: a repetition penalty that overflows",
        "engine/runner/slots.py",
        "        min(max(s.repetition_penalty, _LEAST_REPETITION), _MAX_REPETITION),\n",
        "        s.repetition_penalty,\n",
        (_HERE + "no_repetition_penalty_takes_the_best_that_was_there",),
    ),
)
