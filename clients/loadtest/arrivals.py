"""When sessions begin in an open loop: intended starts, in seconds from the start of the run.

Invariant: intended starts are fixed before the first request is sent and nothing that the server
does moves them; so a slow server cannot slow the questions down that measure it (coordinated
omission).

Gamma arrivals follow the convention of vLLM's benchmark: gaps have the mean 1 / rate and the shape
`burstiness`; 1 is a Poisson process, less is burstier, more is more even.
"""

import random
from collections.abc import Sequence

from quire.clients.errors import OptionError
from quire.clients.loadtest.workload import Session

KINDS, TRACED = ("constant", "poisson", "gamma"), "trace"
_SMALLEST, _LARGEST = 1e-6, 1e6


def intended_starts(
    kind: str, rate: float, burstiness: float, count: int, seed: int
) -> list[float]:
    """Ascending starts of `count` sessions at `rate` sessions a second; the first is 0."""
    _check_kind(kind, KINDS)
    _check_between("burstiness", burstiness)
    check_rate(rate)
    rng = random.Random(f"{seed}/arrivals")
    shape = {"poisson": 1.0, "gamma": burstiness}.get(kind)
    starts, now = [], 0.0
    for _ in range(count):
        starts.append(now)
        now += 1 / rate if shape is None else rng.gammavariate(shape, 1 / (rate * shape))
    return starts


def check(kind: str, burstiness: float, speed: float) -> None:
    """Raises OptionError for impossible values. speed: how much faster a trace is replayed."""
    _check_kind(kind, (*KINDS, TRACED))
    _check_between("burstiness", burstiness)
    _check_between("speed", speed)


def check_rate(rate: float) -> None:
    """Raises OptionError for a rate whose gaps are too long to wait for, or too short for a
    clock."""
    _check_between("rate", rate, ", in sessions a second")


def _check_kind(kind: str, kinds: Sequence[str]) -> None:
    if kind not in kinds:
        raise OptionError(f"arrivals: {kind!r}; one of {', '.join(kinds)}")


def _check_between(name: str, value: float, unit: str = "") -> None:
    if not _SMALLEST <= value <= _LARGEST:
        raise OptionError(f"{name}: {value:g}; from {_SMALLEST:g} to {_LARGEST:g}{unit}")


def traced_starts(sessions: Sequence[Session], speed: float) -> list[float]:
    """The starts that a trace wants, `speed` times as fast; OptionError if it has none."""
    _check_between("speed", speed)
    times = [session.time for session in sessions if session.time is not None]
    if len(times) != len(sessions) or times != sorted(times):
        raise OptionError("trace: every line needs a time, ascending, to be replayed by time")
    return [(time - times[0]) / speed for time in times]
