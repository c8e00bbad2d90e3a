"""The loop: plan, run, apply. Twice, side by side: plain, and overlapped.

The overlapped loop plans and launches step N + 1 before it looks at the result of step N, so the
device never waits for the host. What makes that right lies elsewhere: a placeholder stands for each
token still on its way (scheduler), and the device feeds itself its own last token (slots).

A step that fails ends the requests of every step in flight, and the engine goes on; a fault of the
device itself (`Runner.is_fatal`) ends the engine.
"""

import logging
import secrets
import time
from collections import deque
from typing import Protocol

from quire.engine.plan import StepPlan, StepResult
from quire.engine.request import Output
from quire.engine.scheduler import Scheduler

log = logging.getLogger(__name__)

RUN_AHEAD = 1  # steps launched beyond the one whose result is awaited


class Pending(Protocol):
    """A result on its way."""

    def wait(self) -> StepResult: ...


class StepRunner(Protocol):
    """What the loop needs of a runner."""

    def execute(self, plan: StepPlan) -> Pending: ...

    def reset(self) -> None: ...

    def is_fatal(self, error: Exception) -> bool: ...


class EngineCore:
    """Drives scheduler and runner; one call of `step` is one turn of the loop."""

    def __init__(self, scheduler: Scheduler, runner: StepRunner, *, overlap: bool) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.busy_since: float | None = None  # when the wait for the present step began
        self._in_flight: deque[tuple[StepPlan, Pending]] = deque()
        self._turn = self._overlapped_turn if overlap else self._plain_turn

    def step(self) -> list[Output]:
        """One turn: launches one step at most, applies one at most. Raises only what is fatal."""
        self.busy_since = time.monotonic()
        try:
            return self._turn()
        except Exception as error:
            if self.runner.is_fatal(error):
                raise
            return self._fail(error)
        finally:
            self.busy_since = None

    def _plain_turn(self) -> list[Output]:
        plan = self.scheduler.schedule()
        started = self._said()
        if plan is None:
            return started
        result = self.runner.execute(plan).wait()
        return started + self._stamp(self.scheduler.apply(plan, result))

    def _overlapped_turn(self) -> list[Output]:
        plan = self.scheduler.schedule()
        started = self._said()
        if plan is not None:
            self._in_flight.append((plan, self.runner.execute(plan)))
        if not self._in_flight or (plan is not None and len(self._in_flight) <= RUN_AHEAD):
            return started
        oldest, pending = self._in_flight[0]
        result = pending.wait()
        self._in_flight.popleft()
        return started + self._stamp(self.scheduler.apply(oldest, result))

    def _fail(self, error: Exception) -> list[Output]:
        if not self.scheduler.num_in_flight:
            raise error  # planning itself is at fault: the next turn would only fail again
        error_id = secrets.token_hex(4)
        log.error("a step failed (%s)", error_id, exc_info=error)
        self._in_flight.clear()
        self.runner.reset()
        return self._stamp(self.scheduler.fail(error_id))

    def _said(self) -> list[Output]:
        return self._stamp(self.scheduler.drain_outputs())

    @staticmethod
    def _stamp(outputs: list[Output]) -> list[Output]:
        now = time.monotonic()
        for output in outputs:
            output.time = now
        return outputs
