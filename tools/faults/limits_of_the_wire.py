"""Faults of what one client may ask for before the model is asked at all."""

from faults.fault import Fault

ENTRANCE = ("tests/service/security/test_entrance.py",)
LIMITS = ("tests/service/admission/test_limits.py",)

FAULTS = (
    Fault(
        "wire: Stats are answered however often",
        "service/rpc/servicer.py",
        "            await self.serving.stats.turn(caller.client)\n",
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
)
