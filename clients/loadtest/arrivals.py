"""When sessions begin in an open loop: intended starts, in seconds from the start of the run.

Invariant: intended starts are fixed before the first request is sent and nothing that the server
does moves them; so a slow server cannot slow the questions down that measure it (coordinated
omission).

Gamma arrivals follow the convention of vLLM's benchmark: gaps have the mean 1 / rate and the shape
`burstiness`; 1 is a Poisson process, less is burstier, more is more even.
"""

import math
import random
from collections.abc import Sequence

from quire.clients.errors import OptionError
from quire.clients.loadtest.workload import Session

KINDS = ("constant", "poisson", "gamma")


def intended_starts(
    kind: str, rate: float, burstiness: float, count: int, seed: int
) -> list[float]:
    """Ascending starts of `count` sessions at `rate` sessions a second; the first is 0."""
    if kind not in KINDS:
        raise OptionError(f"arrivals: {kind!r}; one of {', '.join(KINDS)}")
    if not (rate > 0 and math.isfinite(rate)):
        raise OptionError(f"rate: {rate}; above 0, in sessions a second")
    if not (burstiness > 0 and math.isfinite(burstiness)):
        raise OptionError(f"burstiness: {burstiness}; above 0")
    rng = random.Random(f"{seed}/arrivals")
    shape = {"poisson": 1.0, "gamma": burstiness}.get(kind)
    starts, now = [], 0.0
    for _ in range(count):
        starts.append(now)
        now += 1 / rate if shape is None else rng.gammavariate(shape, 1 / (rate * shape))
    return starts


def traced_starts(sessions: Sequence[Session], speed: float) -> list[float]:
    """The starts that a trace wants, `speed` times as fast; OptionError if it has none."""
    if not (speed > 0 and math.isfinite(speed)):
        raise OptionError(f"speed: {speed}; above 0")
    times = [session.time for session in sessions if session.time is not None]
    if len(times) != len(sessions) or times != sorted(times):
        raise OptionError("trace: every line needs a time, ascending, to be replayed by time")
    return [(time - times[0]) / speed for time in times]
