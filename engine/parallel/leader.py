"""Rank 0's runner: each plan goes to the other ranks first, then it is executed here.

Invariant: every rank executes the same plans in the same order, so all of them call the exchange
alike. A step that fails on one rank has left the ranks at different places: it is always fatal.
"""

from typing import Protocol

from quire.engine.errors import RankError
from quire.engine.parallel.codec import encode, encode_masks
from quire.engine.parallel.frame_channel import Kind
from quire.engine.parallel.ranks import Ranks
from quire.engine.runner.results import PendingResult
from quire.engine.scheduling.plan import Masks, StepPlan


class _Runner(Protocol):
    def execute(self, plan: StepPlan) -> PendingResult | None: ...

    def sample(self, masks: Masks) -> PendingResult: ...


class LeadingRunner:
    """Takes the place of the runner in the loop. Results are this rank's, and equal on all."""

    def __init__(self, runner: _Runner, ranks: Ranks) -> None:
        self._runner = runner
        self._ranks = ranks

    def execute(self, plan: StepPlan) -> PendingResult | None:
        """Tell the others and enqueue the step; see StepRunner. Raises RankError where one is
        lost."""
        self._ranks.send(Kind.PLAN, encode(plan))
        return self._runner.execute(plan)

    def sample(self, masks: Masks) -> PendingResult:
        """The sampler's part of the step that `execute` began."""
        self._ranks.send(Kind.MASKS, encode_masks(masks))
        return self._runner.sample(masks)

    def reset(self) -> None:
        """Never asked for: no step fails without ending the engine."""

    def is_fatal(self, error: Exception) -> bool:
        """Always true: after a failed step the ranks are no longer in step. Returns once it is
        known which rank caused it."""
        if isinstance(error, RankError):
            self._ranks.wait_told()
        return True
