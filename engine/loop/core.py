"""The engine's loop: plan, run, apply. In two variants, side by side: plain and overlapped.

The overlapped loop plans and launches step N + 1 before it reads the result of step N, so the
device never waits for the host. Two things elsewhere make that correct: the scheduler keeps a
placeholder for each token still in flight, and the device reads its own last token from the slots.

What a constrained row may draw depends on the token before. So for a step with such rows only the
model is launched ahead. While it runs, the loop applies step N, plans step N + 2, and then launches
the sampler, so that the device continues with the next model without a gap. Where threads compute
many masks, another thread plans step N + 2 meanwhile.

An error in one request ends that request; a step that fails ends the requests of all steps in
flight; in both cases the engine goes on. A device fault (`Runner.is_fatal`), or an error that may
have corrupted the scheduler's state, ends the engine.
"""

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from quire.engine.errors import CorruptStateError
from quire.engine.loop.constraint_compiling import Compiled, Compiling
from quire.engine.loop.side_thread import SideThread
from quire.engine.loop.step_times import StepTimes
from quire.engine.request import FinishReason, GenerationRequest, Output
from quire.engine.scheduling.matching import Matchers
from quire.engine.scheduling.plan import Masks, StepPlan, StepResult
from quire.engine.scheduling.scheduler import Scheduler

log = logging.getLogger(__name__)

_COMPILE_LOOK = 0.005  # seconds between looks for commands while only constraints are compiled
RUN_AHEAD = 1  # steps launched beyond the one whose result is awaited; masks allow no more


class Pending(Protocol):
    """The pending result of a step."""

    def wait(self) -> StepResult:
        """Wait for the device, then return the result."""
        ...


class StepRunner(Protocol):
    """The interface of a runner that the loop needs."""

    def execute(self, plan: StepPlan) -> Pending | None:
        """Launch a step. None if some row needs a mask: then only the model was launched, and
        `sample` must follow."""
        ...

    def sample(self, masks: Masks) -> Pending:
        """Launch what `execute` has left out: the sampler, with these masks."""
        ...

    def reset(self) -> None:
        """After a failed step: assume nothing about the state of the device."""
        ...

    def is_fatal(self, error: Exception) -> bool:
        """Whether the device is lost, and with it the engine."""
        ...


class EngineCore:
    """Drives scheduler and runner; one call of `step` is one turn of the loop."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: StepRunner,
        *,
        overlap: bool,
        matchers: Matchers | None = None,
    ) -> None:
        """matchers: for constraints; None: a request with a constraint ends with ERROR."""
        self.compiling = Compiling(matchers)
        self.scheduler = scheduler
        if matchers is not None:
            scheduler.completion.advance = matchers.advance
            if overlap:
                matchers.set_concurrent_work(self.plan_concurrently)
        self.runner = runner
        self.step_times = StepTimes()
        self.before_wait: Callable[[], None] | None = None  # called once the next step is launched
        # Each does a piece of work that is not urgent; False: it has none. In the order of need.
        self.spare: list[Callable[[], bool]] = []
        # Each plan, when it was launched, and its result: None until its sampler is launched.
        self._in_flight: deque[tuple[StepPlan, float, Pending | None]] = deque()
        self._masks: Masks | None = None  # of the newest plan, if its sampler is still to launch
        self._side_thread = SideThread()
        self._planned: Future[StepPlan | None] | None = None  # the next step, while masks are made
        self._outputs: list[Output] = []  # by the present turn
        self._turn = self._overlapped_turn if overlap else self._plain_turn

    def step(self) -> list[Output]:
        """One turn: launches at most one step, applies at most one. Raises only fatal errors."""
        outputs: list[Output] = []
        self._outputs = outputs
        try:
            self._take_compiled(outputs)
            self._turn(outputs)
        except Exception as error:
            if isinstance(error, CorruptStateError) or self.runner.is_fatal(error):
                raise
            outputs += self._fail(error)
        self._outputs = []
        return outputs

    def use_spare_time(self) -> bool:
        """While idle: do a piece of work that makes later steps faster. False: there is none.
        Raises only fatal errors; after any other, no more work of that kind is done."""
        for work in tuple(self.spare):
            try:
                if work():
                    return True
            except Exception as error:
                if self.runner.is_fatal(error):
                    raise
                log.warning("work in spare time failed, and is given up: %s", error)
                self.spare.remove(work)
        return False

    def drain_after_fault(self) -> list[Output]:
        """After a fault that ends the engine: the outputs that the turn had made before it."""
        outputs, self._outputs = self._outputs, []
        return outputs + self._stamp(self.scheduler.drain_outputs())

    def submit(self, request: GenerationRequest) -> list[Output]:
        """Queue a request, once its constraint is compiled. If it cannot be queued, returns the
        outputs that end it."""
        if request.constraint is not None:
            self.compiling.hold(request)
            return []
        return self._enter(request, None)

    def abort(self, key: int) -> None:
        """End all indices of a request. Stale or repeated calls have no effect."""
        self.compiling.drop(key)
        self.scheduler.abort(key)

    @property
    def has_requests(self) -> bool:
        """Whether any request is unfinished or any step in flight."""
        return bool(self.compiling) or self.scheduler.has_requests

    def _take_compiled(self, outputs: list[Output]) -> None:
        if not self.compiling:
            return
        if not self.scheduler.has_requests:
            self.compiling.wait(_COMPILE_LOOK)
        for request, compiled in self.compiling.ready():
            outputs += self._enter(request, compiled)

    def _enter(self, request: GenerationRequest, compiled: Compiled | None) -> list[Output]:
        try:
            self.scheduler.submit(request, compiled.result() if compiled is not None else ())
        except Exception as error:
            if self.scheduler.knows(request.key):
                raise CorruptStateError(f"queueing failed half-way: {error}") from error
            error_id = secrets.token_hex(4)
            log.error("a request could not be queued (%s)", error_id, exc_info=error)
            ends = [Output(request.key, i, error_id=error_id) for i in range(request.n)]
            for output in ends:
                output.finish = FinishReason.ERROR
            return self._stamp(ends)
        return []

    def _plain_turn(self, outputs: list[Output]) -> None:
        plan = self._plan()
        outputs += self._stamp(self.scheduler.drain_outputs())
        if plan is None:
            return
        launched = time.monotonic()
        pending = self.runner.execute(plan)
        if pending is None:
            pending = self.runner.sample(self.scheduler.masks(plan))
        self._take_in(plan, launched, pending, outputs)

    def _overlapped_turn(self, outputs: list[Output]) -> None:
        plan = self._next_plan()
        outputs += self._stamp(self.scheduler.drain_outputs())
        self._launch_sampler()
        launched = time.monotonic()
        pending = None if plan is None else self.runner.execute(plan)
        if self._in_flight and (plan is None or len(self._in_flight) >= RUN_AHEAD):
            self._take_in(*self._in_flight[0], outputs)
            self._in_flight.popleft()
        if plan is not None:
            if pending is None:
                self._masks = self.scheduler.masks(plan)
            self._in_flight.append((plan, launched, pending))

    def _launch_sampler(self) -> None:
        masks, self._masks = self._masks, None
        if masks is not None:
            plan, launched, _ = self._in_flight.pop()
            self._in_flight.append((plan, launched, self.runner.sample(masks)))

    def _take_in(
        self, plan: StepPlan, launched: float, pending: Pending | None, outputs: list[Output]
    ) -> None:
        """Wait for a step's result, and apply it."""
        if self.before_wait is not None:
            self.before_wait()
        self.scheduler.completion.hash_ahead()
        assert pending is not None
        result = pending.wait()
        self.step_times.ended(plan, launched)
        outputs += self._stamp(self.scheduler.apply(plan, result))

    def plan_concurrently(self) -> Callable[[], object]:
        """Have another thread plan the next step while this one, in the middle of applying a step,
        waits for masks. If that is not possible, this one plans it later. Returns a function that
        waits for it."""
        return self._side_thread.begin(self._plan_ahead)

    def _plan_ahead(self) -> None:
        self._planned = Future()
        try:
            self._planned.set_result(self._plan())
        except Exception as error:
            self._planned.set_exception(error)

    def _next_plan(self) -> StepPlan | None:
        planned, self._planned = self._planned, None
        return self._plan() if planned is None else planned.result()

    def _plan(self) -> StepPlan | None:
        try:
            return self.scheduler.schedule()
        except Exception as error:  # blocks and slots may have been allocated without a plan
            raise CorruptStateError(f"planning failed: {error}") from error

    def _fail(self, error: Exception) -> list[Output]:
        if not self.scheduler.num_in_flight:
            raise error  # there is no request to blame
        error_id = secrets.token_hex(4)
        log.error("a step failed (%s)", error_id, exc_info=error)
        if self._planned is not None:
            self._planned.result()  # an error in planning ends the engine in any case
        self._in_flight.clear()
        self._masks = self._planned = None
        self.runner.reset()
        return self._stamp(self.scheduler.fail(error_id))

    @staticmethod
    def _stamp(outputs: list[Output]) -> list[Output]:
        now = time.monotonic()
        for output in outputs:
            output.stamp(now)
        return outputs
