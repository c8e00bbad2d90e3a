"""Faults of what one client may ask for before the model is asked at all."""

from faults.fault import Fault

ENTRANCE = ("tests/service/security/test_entrance.py",)
LIMITS = ("tests/service/admission/test_limits.py",)

FAULTS = (
    Fault(
        "wire: Stats are answered however often",
        "service/rpc/answers.py",
        "        await serving.stats.turn(caller.client)\n",
        "",
        ENTRANCE,
    ),
    Fault(
        "wire: an answer to Stats does not wait for its turn",
        "service/rpc/stats.py",
        "            await asyncio.sleep(wait)\n",
        "            pass\n",
        ENTRANCE,
    ),
    Fault(
        "wire: clients that asked for Stats once are kept for ever",
        "service/admission/rate_limits.py",
        "if b.level(now) < b.burst}",
        "if b.level(now) <= b.burst}",
        LIMITS,
    ),
    Fault(
        "client: a number next to zero is sent as zero",
        "clients/single_precision.py",
        "math.copysign(max(abs(value), _LEAST), value) if value else value",
        "value",
        (
            "tests/clients/test_arguments.py::test_a_number_next_to_zero_is_not_sent_as_zero",
            "tests/clients/openai/test_openai_fields.py"
            "::test_what_is_next_to_zero_is_not_told_as_zero",
        ),
    ),
)
