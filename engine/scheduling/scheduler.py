"""What runs next. `schedule` makes a plan, `apply` takes its result in; nothing else changes state.

Invariants
- `schedule` advances num_computed_tokens and adds a placeholder for each token to be sampled;
  `apply`, called once a plan and in the plans' order, fills it. Between the two a request is in
  flight, and neither its blocks nor its slot go to anybody else unless it was preempted: what a
  step in flight still writes for a preempted request is overwritten in stream order before it can
  be read, and its result is dropped, because preemption raises the epoch.
- Nothing is planned past max_tokens; only EOS and stops are noticed late, and what was sampled past
  them is discarded.
- A block is registered in the prefix cache only when the step that filled it has been applied.
- No clock, no randomness, no order of a set enters a decision: equal submissions and results give
  equal plans.
- A request is refused at submission if it could never fit alone, so a lone request always
  finishes. Of those that run, the first admitted of the highest priority is never preempted, and
  whenever it has to wait for a block another one advances: traffic always drains.
"""

import logging
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from quire.engine.errors import CorruptStateError
from quire.engine.request import (
    FinishReason,
    GenerationRequest,
    Output,
    Request,
    Status,
    TokenLogprob,
)
from quire.engine.scheduling.block_pool import BlockPool
from quire.engine.scheduling.limits import RequestLimits
from quire.engine.scheduling.plan import BlockUpdate, PlanRow, StepPlan, StepResult
from quire.engine.scheduling.waiting_queue import WaitingQueue

log = logging.getLogger(__name__)


@dataclass(slots=True)
class SchedulerCounters:
    """Counters that only rise."""

    prompt_tokens: int = 0
    prefill_computed: int = 0
    prefix_queried: int = 0
    prefix_hit: int = 0
    preemptions: int = 0
    generated: int = 0
    discarded: int = 0
    aborted_in_flight: int = 0
    steps: int = 0
    mixed_steps: int = 0
    failed_steps: int = 0


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    budget: int
    decode_rows: list[PlanRow] = field(default_factory=list)
    prefill_rows: list[PlanRow] = field(default_factory=list)
    planned: set[Request] = field(default_factory=set)
    admitted: list[Request] = field(default_factory=list)
    block_updates: list[BlockUpdate] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    starved: bool = False  # blocks ran out: nobody new is admitted in this step


class Scheduler:
    """Plans steps over one BlockPool. Touched by the engine thread alone."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        two_phase: bool = False,
    ) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.limits = RequestLimits(max_model_len, pool.block_size, pool.num_usable)
        self.two_phase = two_phase
        self.counters = SchedulerCounters()
        self._waiting = WaitingQueue()
        self._running: list[Request] = []  # in rank: priority, then arrival
        self._requests: dict[int, list[Request]] = {}  # unfinished ones, by key
        self._slots = list(range(max_num_seqs - 1, -1, -1))
        self._in_flight: list[StepPlan] = []
        self._outputs: list[Output] = []  # said outside of apply
        self._arrivals = 0
        self._admissions = 0
        self._steps = 0

    # ------------------------------------------------------------ submissions

    def check(self, spec: GenerationRequest) -> None:
        """Raise RequestError if the request can never run. Needs no state; any thread may call."""
        self.limits.check(spec)

    def submit(self, spec: GenerationRequest) -> None:
        """Queue all indices of a request, or raise RequestError (see check) and keep no state."""
        self.check(spec)
        leader, *followers = siblings = [self._arrive(spec, index) for index in range(spec.n)]
        # What can fail has been done: from here on there is state.
        self._requests[spec.key] = siblings
        for _ in siblings:
            self._waiting.enter(spec.client)
        self._waiting.push(leader)
        for request in followers:
            request.leader = leader
            self._waiting.hold(leader, request)
        if spec.resume_token_ids:
            self._finish_if_resumed_complete(leader)

    def _arrive(self, spec: GenerationRequest, index: int) -> Request:
        self._arrivals += 1
        return Request(spec, index, self._arrivals)

    def _finish_if_resumed_complete(self, request: Request) -> None:
        """The client may already hold all there is to say."""
        last = request.token_ids[-1]
        params = request.sampling
        output = Output(request.key, request.index, started=True)
        if request.num_outputs >= params.min_tokens and last in params.ending_ids:
            self._finish(request, FinishReason.STOP, output, stop_token_id=last)
        elif request.num_outputs >= params.max_tokens:
            self._finish(request, FinishReason.LENGTH, output)

    def abort(self, key: int) -> None:
        """End all indices of a request. Stale or repeated calls are nothing."""
        for request in tuple(self._requests.get(key, ())):
            self.counters.aborted_in_flight += request.in_flight > 0
            self._finish(request, FinishReason.CANCELLED, Output(key, request.index))

    def finish(self, key: int, index: int, kept: int) -> None:
        """End one index after `kept` of the outputs handed out: the caller found a stop string.

        Stale or repeated calls are nothing, but for the count of what was handed out and dropped.
        """
        for request in tuple(self._requests.get(key, ())):
            if request.index == index:
                self.counters.discarded += request.emitted - kept
                self._finish(request, FinishReason.STOP, None)

    # ------------------------------------------------------------ planning

    def schedule(self) -> StepPlan | None:
        """The next step, or None if nothing can be planned now."""
        draft = _Draft(self.max_num_batched_tokens)
        if self.two_phase:
            self._plan_two_phase(draft)
        else:
            self._plan_running(draft, decode=True)
            self._plan_running(draft, decode=False)
            self._admit(draft)
        # Attention takes rows in this order: a long one begun last would run on alone.
        draft.decode_rows.sort(key=attrgetter("start"), reverse=True)
        rows = (*draft.decode_rows, *draft.prefill_rows)
        if not rows:
            return None
        self._steps += 1
        plan = StepPlan(
            step_id=self._steps,
            rows=rows,
            admitted=tuple(draft.admitted),
            block_updates=tuple(draft.block_updates),
            copies=tuple(draft.copies),
            num_decode_rows=len(draft.decode_rows),
            num_tokens=self.max_num_batched_tokens - draft.budget,
        )
        self._in_flight.append(plan)
        return plan

    def _plan_two_phase(self, draft: _Draft) -> None:
        """Prompt tokens first and alone; decode rows only in steps that hold none."""
        self._plan_running(draft, decode=False)
        self._admit(draft)
        if not draft.planned:
            draft.starved = False
            self._plan_running(draft, decode=True)

    def _plan_running(self, draft: _Draft, *, decode: bool) -> None:
        for request in tuple(self._running):
            if draft.budget == 0:
                return
            if request.status is not Status.RUNNING or request in draft.planned:
                continue
            remaining = request.remaining
            if remaining <= 0 or (remaining == 1) != decode:
                continue
            count = min(remaining, draft.budget)
            if self._secure_blocks(request, count, draft):
                self._add_row(request, count, draft)

    def _add_row(self, request: Request, count: int, draft: _Draft) -> None:
        start = request.num_computed_tokens
        request.num_computed_tokens = start + count
        samples = request.num_computed_tokens == request.num_tokens
        if samples:
            request.num_placeholders += 1
        request.in_flight += 1
        self._waiting.charge(request.spec.client, count)
        draft.budget -= count
        draft.planned.add(request)
        row = PlanRow(request, request.epoch, request.slot, start, count, samples)
        is_decode = count == 1 and samples  # its token is the last one, which the slot holds
        (draft.decode_rows if is_decode else draft.prefill_rows).append(row)

    def _secure_blocks(self, request: Request, count: int, draft: _Draft) -> bool:
        """Give the request blocks for `count` more tokens, preempting others if it must."""
        table = request.block_table
        needed = self.pool.blocks_needed(request.num_computed_tokens + count) - len(table)
        if needed <= 0:
            return True
        while self.pool.num_free < needed:
            draft.starved = True
            victim = self._victim(request, draft)
            if victim is None:
                return False
            self._preempt(victim)
            if victim is request:
                return False
        self._extend_table(request, self.pool.allocate(needed), draft)
        return True

    def _victim(self, request: Request, draft: _Draft) -> Request | None:
        """Lowest priority, last admitted, never one planned in this step.

        None: only `request` itself is left, and others go on; it waits rather than lose its work.
        """
        candidates = [r for r in self._running if r not in draft.planned]
        if candidates == [request]:
            return None
        return min(candidates, key=lambda r: (r.priority, -r.admission))

    def _preempt(self, request: Request) -> None:
        request.epoch += 1
        request.preemptions += 1
        self.counters.preemptions += 1
        self._running.remove(request)
        self._vacate(request)
        request.num_placeholders = 0
        request.num_computed_tokens = 0
        request.num_applied_tokens = 0
        request.num_registered_blocks = 0
        self._waiting.push(request)

    def _vacate(self, request: Request) -> None:
        """Give back blocks and slot."""
        self.pool.release(request.block_table)
        request.block_table = []
        if request.slot >= 0:
            self._slots.append(request.slot)
            request.slot = -1

    def _extend_table(self, request: Request, blocks: Sequence[int], draft: _Draft) -> None:
        column = len(request.block_table)
        request.block_table.extend(blocks)
        request.peak_blocks = max(request.peak_blocks, len(request.block_table))
        draft.block_updates.extend(
            BlockUpdate(request.slot, column + i, block) for i, block in enumerate(blocks)
        )

    # ------------------------------------------------------------ admission

    def _admit(self, draft: _Draft) -> None:
        while draft.budget > 0 and self._slots and not draft.starved:
            request = self._waiting.head()
            if request is None or not self._admit_one(request, draft):
                return

    def _admit_one(self, request: Request, draft: _Draft) -> bool:
        """Give a waiting request its slot, its known prefix and blocks for all it has."""
        fork = self._fork_source(request)
        if fork is None:
            shared = self._find_prefix(request)
            computed = len(shared) * self.pool.block_size
        else:
            computed = request.num_prompt_tokens - 1
            shared = fork.block_table[: computed // self.pool.block_size]
        fresh = self.pool.blocks_needed(request.num_tokens) - len(shared)
        reserve = min(len(self._running), self.pool.num_usable // 64)
        if self.pool.num_free_among(shared) + fresh + reserve > self.pool.num_free:
            draft.starved = True
            return False
        if request.cached_tokens < 0:
            self._start(request, computed, fork)
        request.leader = None
        self._enter(request, shared, computed, draft)
        self._extend_table(request, self.pool.allocate(fresh), draft)
        if fork is not None:
            draft.copies.append((fork.block_table[len(shared)], request.block_table[len(shared)]))
        self._add_row(request, min(request.remaining, draft.budget), draft)
        return True

    @staticmethod
    def _fork_source(request: Request) -> Request | None:
        """The running sibling whose prompt is computed, if this request never ran itself.

        A leader that was preempted and runs again may be at its prompt still, or again.
        """
        leader = request.leader
        if leader is None or leader.status is not Status.RUNNING:
            return None
        return leader if leader.num_applied_tokens >= leader.num_prompt_tokens else None

    def _find_prefix(self, request: Request) -> list[int]:
        """Cached blocks of the request's prefix: whole ones, leaving a token to compute."""
        if not self.pool.enable_caching:
            return []
        known = request.token_ids
        limit = (len(known) - 1) // self.pool.block_size
        self.pool.extend_hashes(request.block_hashes, request.spec.cache_salt, known, limit)
        return self.pool.match(request.block_hashes[:limit], known)

    def _start(self, request: Request, computed: int, fork: Request | None) -> None:
        """Counts and words of the first time a request is scheduled."""
        if fork is None:
            request.cached_tokens = min(computed, request.num_prompt_tokens)
            self.counters.prefix_queried += request.num_prompt_tokens
            self.counters.prefix_hit += request.cached_tokens
        else:
            request.cached_tokens = fork.cached_tokens
        self.counters.prompt_tokens += request.num_prompt_tokens
        output = Output(request.key, request.index, started=True)
        output.cached_tokens = request.cached_tokens
        self._outputs.append(output)

    def _enter(self, request: Request, shared: Sequence[int], computed: int, draft: _Draft) -> None:
        self.pool.share(shared)
        self._waiting.take(request)
        request.slot = self._slots.pop()
        self._admissions += 1
        request.admission = self._admissions
        request.num_computed_tokens = computed
        request.num_applied_tokens = computed
        request.num_registered_blocks = len(shared)
        self._extend_table(request, shared, draft)
        self._insert_running(request)
        draft.admitted.append(request)

    def _insert_running(self, request: Request) -> None:
        rank = (-request.priority, request.arrival)
        position = len(self._running)
        while position and rank < (
            -self._running[position - 1].priority,
            self._running[position - 1].arrival,
        ):
            position -= 1
        self._running.insert(position, request)

    # ------------------------------------------------------------ results

    def apply(self, plan: StepPlan, result: StepResult) -> list[Output]:
        """Take in the result of the oldest plan in flight; returns what there is to say.

        Raises ValueError, before anything has changed, if the result does not fit the plan. What
        goes wrong with one row's result ends that request alone, with ERROR; CorruptStateError if
        that can not be done.
        """
        decode = plan.num_decode_rows  # they come first, and all of them sample
        samples = decode + sum([row.samples for row in plan.rows[decode:]])
        if len(result.tokens) != samples:
            raise ValueError(f"{len(result.tokens)} rows of tokens for {samples} that sample")
        self._retire(plan)
        outputs = self.drain_outputs()
        self.counters.steps += 1
        self.counters.mixed_steps += plan.is_mixed
        sampled = 0
        for row in plan.rows:
            tokens: list[int] = []
            logprob = None
            if row.samples:
                tokens = result.tokens[sampled]
                logprob = result.logprobs[sampled] if result.logprobs else None
                sampled += 1
            row.request.in_flight -= 1
            said = len(outputs)
            try:
                self._apply_row(row, tokens, logprob, outputs)
            except Exception as error:
                if row.request.status is Status.FINISHED:
                    raise CorruptStateError(str(error)) from error  # half-way through its end
                del outputs[said:]
                self.counters.discarded += len(tokens)
                self._fail_one(row.request, error)
        outputs.extend(self.drain_outputs())
        return outputs

    def _apply_row(
        self,
        row: PlanRow,
        tokens: Sequence[int],
        logprob: TokenLogprob | None,
        outputs: list[Output],
    ) -> None:
        request = row.request
        self._count(row, tokens)
        if request.status is Status.FINISHED:
            self.counters.discarded += len(tokens)
            self._release_if_idle(request)
        elif row.epoch != request.epoch:
            self.counters.discarded += len(tokens)
        else:
            request.num_applied_tokens = row.start + row.num_tokens
            self._register_full_blocks(request)
            if row.start < request.num_prompt_tokens <= request.num_applied_tokens:
                self._waiting.release(request)
            self._append(request, tokens, logprob, outputs)

    def _fail_one(self, request: Request, error: Exception) -> None:
        """End one request by a fault that is its alone."""
        error_id = secrets.token_hex(4)
        log.error("a request failed (%s)", error_id, exc_info=error)
        output = Output(request.key, request.index, error_id=error_id)
        self._finish(request, FinishReason.ERROR, output)

    def fail(self, error_id: str) -> list[Output]:
        """A step failed: all requests in flight end with it; none of their blocks is known."""
        plans, self._in_flight = self._in_flight, []
        self.counters.failed_steps += len(plans)
        for plan in plans:
            for row in plan.rows:
                row.request.in_flight -= 1
        for plan in plans:
            for request in (row.request for row in plan.rows):
                if request.status is Status.FINISHED:
                    self._release_if_idle(request)
                else:
                    output = Output(request.key, request.index, error_id=error_id)
                    self._finish(request, FinishReason.ERROR, output)
        return self.drain_outputs()

    def knows(self, key: int) -> bool:
        """Whether there is state of an unfinished request of this key."""
        return key in self._requests

    def drain_outputs(self) -> list[Output]:
        """What was said since the last call, outside of apply."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def _retire(self, plan: StepPlan) -> None:
        if not self._in_flight or self._in_flight[0] is not plan:
            raise ValueError(f"step {plan.step_id} is not the oldest in flight")
        self._in_flight.pop(0)

    def _count(self, row: PlanRow, tokens: Sequence[int]) -> None:
        self.counters.generated += len(tokens)
        if row.start + row.num_tokens <= row.request.num_prompt_tokens or row.num_tokens > 1:
            self.counters.prefill_computed += row.num_tokens

    def _append(
        self,
        request: Request,
        tokens: Sequence[int],
        logprob: TokenLogprob | None,
        outputs: list[Output],
    ) -> None:
        """Fill placeholders with sampled tokens; end the request where one of them does."""
        for token in tokens:
            request.num_placeholders -= 1
            request.token_ids.append(token)
            request.emitted += 1
            output = Output(request.key, request.index, token_ids=[token])
            if logprob is not None:
                output.logprobs = [logprob]
            self._say(request, output, outputs)
            params = request.sampling
            if request.num_outputs >= params.min_tokens and token in request.ending_ids:
                self._finish(request, FinishReason.STOP, output, stop_token_id=token, said=True)
            elif request.num_outputs >= params.max_tokens:
                self._finish(request, FinishReason.LENGTH, output, said=True)
            if request.status is Status.FINISHED:
                return

    @staticmethod
    def _say(request: Request, output: Output, outputs: list[Output]) -> None:
        output.preemptions = request.preemptions
        output.peak_blocks = request.peak_blocks
        outputs.append(output)

    def _finish(
        self,
        request: Request,
        reason: FinishReason,
        output: Output | None,
        *,
        stop_token_id: int | None = None,
        said: bool = False,
    ) -> None:
        """The one terminal transition. Blocks stay until no step in flight holds the request."""
        was, request.status = request.status, Status.FINISHED
        if was is Status.RUNNING:
            self._running.remove(request)
        else:
            self._waiting.forget(request)
        self._waiting.release(request)
        self._waiting.leave(request.spec.client)
        siblings = self._requests[request.key]
        siblings.remove(request)
        if not siblings:
            del self._requests[request.key]
        self._release_if_idle(request)
        if output is not None:
            output.finish = reason
            output.stop_token_id = stop_token_id
            if not said:
                self._say(request, output, self._outputs)

    def _release_if_idle(self, request: Request) -> None:
        if request.in_flight == 0:
            self._vacate(request)

    def _register_full_blocks(self, request: Request) -> None:
        if not self.pool.enable_caching:
            return
        full = request.num_applied_tokens // self.pool.block_size
        if full <= request.num_registered_blocks:
            return
        self.pool.extend_hashes(
            request.block_hashes, request.spec.cache_salt, request.token_ids, full
        )
        for index in range(request.num_registered_blocks, full):
            self.pool.register(
                request.block_table[index],
                request.block_hashes[index],
                request.token_ids,
                index,
            )
        request.num_registered_blocks = full

    # ------------------------------------------------------------ sight

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_in_flight(self) -> int:
        """Steps planned whose results have not been applied."""
        return len(self._in_flight)

    @property
    def has_requests(self) -> bool:
        """Whether any request is unfinished or any step in flight."""
        return bool(self._requests or self._in_flight)

    def unfinished(self) -> Iterator[Request]:
        """All requests that have not ended."""
        for siblings in self._requests.values():
            yield from siblings
