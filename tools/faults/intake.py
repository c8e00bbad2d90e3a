"""Faults of how a request's body is taken in."""

from faults.fault import Fault

INTAKE = "service/admission/intake.py"
_TESTS = "tests/service/admission/test_intake.py::test_"

FAULTS = (
    Fault(
        "intake: a body that is given up is waited for",
        INTAKE,
        "            self._task.cancel()\n",
        "            pass\n",
        (_TESTS + "at_the_end_whoever_has_yet_to_say_what_they_want_is_told_so",),
    ),
    Fault(
        "intake: who is cancelled and loses the place too is refused",
        INTAKE,
        "            if mine and kind is asyncio.CancelledError:\n",
        "            if kind is asyncio.CancelledError:\n",
        (_TESTS + "who_is_cancelled_and_loses_the_place_too_is_cancelled",),
    ),
    Fault(
        "intake: who gets a place as the server closes is waited for",
        INTAKE,
        "            if self._closed:  # since the place was given\n",
        "            if False:\n",
        (_TESTS + "who_gets_a_place_as_the_server_closes_is_refused",),
    ),
    Fault(
        "intake: a call without a key gets the handler of those with one",
        INTAKE,
        "        if refusal is not None:\n            return self._make(",
        "        if refusal is not None and method in self._made:\n            return self._make(",
        (_TESTS + "a_caller_without_a_key_is_refused_before_their_body_is_there",),
    ),
)
