"""Step times by kind of step.

Invariant: a step's time runs from its launch to the arrival of its result; if it had to queue
behind the step before it, from the end of that one. So the times of a busy engine add up to the
time it was busy. Written by the engine's thread alone.
"""

import time
from functools import cached_property

from quire.engine.loop.histogram import Histogram
from quire.engine.scheduling.plan import StepPlan

BOUNDS = (
    *(0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1),
    *(0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
KINDS = ("decode", "prefill", "mixed")
Values = list[tuple[list[int], float]]


def kind_of(plan: StepPlan) -> str:
    """decode: every row is one new token; prefill: none is; mixed: both."""
    if plan.num_decode_rows == len(plan.rows):
        return "decode"
    return "mixed" if plan.num_decode_rows else "prefill"


class StepTimes:
    """A histogram a kind."""

    def __init__(self, values: Values | None = None) -> None:
        """values: of another, perhaps in another process; they are not looked at before they are
        asked for, as each step tells them."""
        if values is None:
            self.histograms = {kind: Histogram(BOUNDS) for kind in KINDS}
        else:
            self._told = values
        self._last_end = 0.0

    @cached_property
    def histograms(self) -> dict[str, Histogram]:
        """By kind."""
        told = zip(KINDS, self._told, strict=True)
        return {kind: Histogram(BOUNDS, *counted) for kind, counted in told}

    def values(self) -> Values:
        """Counts and sum of each kind, in order, as plain data."""
        return [(h.counts, h.sum) for h in self.histograms.values()]

    def ended(self, plan: StepPlan, launched: float) -> None:
        """The result of a step launched at that time (time.monotonic) is here."""
        now = time.monotonic()
        self.histograms[kind_of(plan)].observe(now - max(launched, self._last_end))
        self._last_end = now
