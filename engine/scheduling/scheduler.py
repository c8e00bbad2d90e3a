"""Decides what runs next. `schedule` makes a plan, `apply` takes in its result; besides submissions
and ends, nothing else changes state.

Invariants
- `schedule` advances num_computed_tokens and adds a placeholder for each token to be sampled;
  `apply`, called once per plan and in order, fills it. In between the request is in flight, and its
  blocks and slot go to nobody else unless it is preempted: whatever a step in flight still writes
  for a preempted request is overwritten in stream order before it can be read, and its result is
  dropped because preemption raises the epoch.
- A constrained row is planned like any other, whether its last token is known or not; what it may
  draw comes from `masks`, once the results of all earlier plans have been applied.
- A plan holds only numbers; the live request behind each row is known only here.
- Nothing is planned past max_tokens; only EOS and stops are noticed late, and tokens sampled past
  them are discarded.
- No decision depends on a clock, randomness or the order of a set: equal submissions and results
  give equal plans.
- A request that could never fit alone is refused at submission, so a lone request always finishes.
  Among running requests, the first admitted of the highest priority is never preempted, and
  whenever it has to wait for a block another one advances: traffic always drains.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat
from operator import attrgetter
from typing import Unpack

from quire.engine.request import FinishReason, GenerationRequest, Output
from quire.engine.scheduling.block_pool import BlockPool
from quire.engine.scheduling.completion import Completion
from quire.engine.scheduling.draft import Draft
from quire.engine.scheduling.kv_events import Known
from quire.engine.scheduling.limits import RequestLimits
from quire.engine.scheduling.matching import Constrained
from quire.engine.scheduling.options import SchedulerOptions
from quire.engine.scheduling.plan import (
    BlockUpdate,
    Masks,
    Pooled,
    StepPlan,
    StepResult,
    new_row,
)
from quire.engine.scheduling.prefix_cache import PartialMatch
from quire.engine.scheduling.request import Request, Status
from quire.engine.scheduling.scheduler_state import SchedulerState

_RUNNING = Status.RUNNING
# A BlockUpdate from a tuple of all its fields: half the time of a regular call, once per block.
_new_update: Callable[[tuple[int, ...]], BlockUpdate] = partial(tuple.__new__, BlockUpdate)


class Scheduler:
    """Plans steps over one BlockPool. Used by the engine's thread, or by one that it waits for."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        window: int | None = None,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        """window: tokens that each token sees, including itself; None: all before it."""
        self.pool = pool
        self.max_num_seqs = options["max_num_seqs"]
        self.max_num_batched_tokens = options["max_num_batched_tokens"]
        self.two_phase = options.get("two_phase", False)
        longest = options["max_model_len"]
        self.limits = RequestLimits(longest, pool.block_size, pool.num_usable)
        self.window = window
        self.state = SchedulerState(pool, self.max_num_seqs)
        self.completion = Completion(self.state, window)
        self.counters = self.state.counters
        self._shares = self.state.waiting.shares
        self._steps = 0

    # ------------------------------------------------------------ submissions

    def check(self, spec: GenerationRequest) -> None:
        """Raise RequestError if the request can never run. Needs no state; any thread may call."""
        self.limits.check(spec)

    def submit(self, spec: GenerationRequest, constrained: Sequence[Constrained] = ()) -> None:
        """Queue all indices of a request, or raise RequestError (see check) and keep no state.

        constrained: each index's matcher state; first masks are made here. Raises ConstraintError.
        """
        self.check(spec)
        goes_on = [one.prepare(len(spec.resume_token_ids)) for one in constrained]
        leader = self.state.enter(spec, constrained)
        if not all(goes_on):  # checked before max_tokens, as in apply
            for request in tuple(self.state.by_key[spec.key]):
                output = Output(request.key, request.index, started=True)
                self.state.end(request, FinishReason.STOP, output)
        elif spec.resume_token_ids:
            self._finish_if_resumed_complete(leader)

    def _finish_if_resumed_complete(self, request: Request) -> None:
        """The client may already have the complete output."""
        last = request.token_ids[-1]
        params = request.sampling
        output = Output(request.key, request.index, started=True)
        if request.num_outputs >= params.min_tokens and last in params.ending_ids:
            self.state.end(request, FinishReason.STOP, output, stop_token_id=last)
        elif request.num_outputs >= params.max_tokens:
            self.state.end(request, FinishReason.LENGTH, output)

    def abort(self, key: int) -> None:
        """End all indices of a request. Stale or repeated calls have no effect."""
        for request in tuple(self.state.by_key.get(key, ())):
            self.counters.aborted_in_flight += request.in_flight > 0
            self.state.end(request, FinishReason.CANCELLED, Output(key, request.index))

    def finish(self, key: int, index: int, kept: int) -> None:
        """End one index after `kept` of the outputs handed out: the caller found a stop string.

        Stale or repeated calls have no effect.
        """
        for request in tuple(self.state.by_key.get(key, ())):
            if request.index == index:
                self.counters.discarded += request.emitted - kept
                self.state.end(request, FinishReason.STOP, None)

    # ------------------------------------------------------------ planning

    def schedule(self) -> StepPlan | None:
        """The next step, or None if nothing can be planned now."""
        draft = Draft(self.max_num_batched_tokens)
        if self.two_phase:
            self._plan_two_phase(draft)
        else:
            self._plan_running(draft, decode=True)
            self._plan_running(draft, decode=False)
            self._admit(draft)
        # Attention takes rows in this order: a long one started last would run on alone.
        if len(draft.decode_rows) > 1:
            draft.decode_rows.sort(key=attrgetter("start"), reverse=True)
        self._release_held(draft)
        rows = (*draft.decode_rows, *draft.prefill_rows)
        if not rows:
            return None
        self._steps += 1
        plan = draft.plan(self._steps, rows, self.max_num_batched_tokens - draft.budget)
        planned = draft.planned
        self.completion.launched(plan, [planned[row.slot] for row in rows])
        return plan

    def _release_held(self, draft: Draft) -> None:
        """Release the sources of copies: later steps write only after this one has copied."""
        if draft.held:
            self.pool.release(draft.held)

    def _plan_two_phase(self, draft: Draft) -> None:
        """Prompt tokens first, on their own; decode rows only in steps without prompt tokens."""
        self._plan_running(draft, decode=False)
        self._admit(draft)
        if not draft.planned:
            draft.starved = False
            self._plan_running(draft, decode=True)

    def _plan_running(self, draft: Draft, *, decode: bool) -> None:
        running, block_size = self.state.running, self.pool.block_size
        if len(draft.planned) == len(running):
            return
        for request in tuple(running):
            if draft.budget == 0:
                return
            if request.status is not _RUNNING:
                continue
            remaining = request.remaining
            if remaining <= 0 or (remaining == 1) != decode:
                continue
            if decode and (start := request.num_computed_tokens) >= request.num_prompt_tokens:
                if start % block_size or self._secure_blocks(request, 1, draft):
                    self._shares.charge(request.spec.client, 1, request.spec.user)
                    draft.add_next(request)
                continue
            count = min(remaining, draft.budget)
            if self._secure_blocks(request, count, draft):
                self._add_row(request, count, draft)

    def _add_row(self, request: Request, count: int, draft: Draft) -> None:
        start = request.num_computed_tokens
        end = request.num_computed_tokens = start + count
        samples = end == request.num_tokens
        if samples and (request.plain or not self._pooled(request, draft)):
            request.num_placeholders += 1
            if request.constrained is not None:
                draft.masked.append(request.slot)
        elif samples:
            samples = False
        request.in_flight += 1
        self._shares.charge(request.spec.client, count, request.spec.user)
        draft.budget -= count
        slot = request.slot
        draft.planned[slot] = request
        is_decode = samples and count == 1  # the slot holds its token, the last one
        tokens = b"" if is_decode else request.token_ids[start:end].tobytes()
        if request.prompt_logprobs_left:
            draft.add_prompt_logprobs(request, start, end)
        row = new_row(
            (request.key, request.index, request.epoch, slot, start, count, samples, tokens)
        )
        (draft.decode_rows if is_decode else draft.prefill_rows).append(row)

    @staticmethod
    def _pooled(request: Request, draft: Draft) -> bool:
        """Whether the request wants an output of its last token instead of a sampled one."""
        pooling = request.spec.pooling
        if pooling is not None:
            draft.pooled.append(Pooled(request.slot, pooling.token_ids))
        return pooling is not None

    def _secure_blocks(self, request: Request, count: int, draft: Draft) -> bool:
        """Give the request blocks for `count` more tokens, preempting others if necessary."""
        end, table = request.num_computed_tokens + count, request.block_table
        if end <= len(table) * self.pool.block_size:
            return True
        needed = self.pool.blocks_needed(end) - len(table)
        if not self._make_room(request, lambda: self.pool.num_free >= needed, draft):
            return False
        self._extend_table(request, self.pool.allocate(needed), draft)
        return True

    def _make_room(self, request: Request, enough: Callable[[], bool], draft: Draft) -> bool:
        """Preempt others until there is enough room; False if that cannot be reached."""
        while not enough():
            draft.starved = True
            victim = self._victim(request, draft)
            if victim is None:
                return False
            self.state.preempt(victim)
            if victim is request:
                return False
        return True

    def _victim(self, request: Request, draft: Draft) -> Request | None:
        """The victim: lowest priority, last admitted, never one planned in this step.

        None: only `request` is left while others advance; it waits instead of losing its work.
        """
        candidates = [r for r in self.state.running if r.slot not in draft.planned]
        if candidates == [request]:
            return None
        return min(candidates, key=lambda r: (r.priority, -r.admission))

    def _extend_table(self, request: Request, blocks: Sequence[int], draft: Draft) -> None:
        column = len(request.block_table)
        request.block_table.extend(blocks)
        request.peak_blocks = max(request.peak_blocks, request.num_held_blocks)
        columns = range(column, column + len(blocks))
        draft.block_updates.extend(map(_new_update, zip(repeat(request.slot), columns, blocks)))

    # ------------------------------------------------------------ admission

    def _admit(self, draft: Draft) -> None:
        while draft.budget > 0 and self.state.free_slots and not draft.starved:
            request = self.state.waiting.head()
            if request is None or not self._admit_one(request, draft):
                return

    def _admit_one(self, request: Request, draft: Draft) -> bool:
        """Give a waiting request its slot, its cached prefix and blocks for all its tokens."""
        fork, source = self._fork_source(request), None
        if fork is None:
            shared = self._find_prefix(request)
            computed = len(shared) * self.pool.block_size
        else:
            computed = request.num_prompt_tokens - 1
            shared = fork.block_table[: computed // self.pool.block_size]
            source = fork.block_table[len(shared)]
        fresh = self.pool.blocks_needed(request.num_tokens) - len(shared)
        reserve = min(len(self.state.running), self.pool.num_usable // 64)
        if not self.pool.has_room(fresh + reserve, shared):
            draft.starved = True
            return False
        hits = fork is None and not request.prompt_logprobs_left
        if hits and (match := self._hold_partial(request, shared, fresh, draft)) is not None:
            source, computed = match.block, computed + match.num_tokens
        if request.cached_tokens < 0:
            self._start(request, computed, fork)
        self.state.admit(request, shared, computed)
        draft.admitted.append(request.admission_row())
        self._extend_table(request, shared, draft)
        self._extend_table(request, self.pool.allocate(fresh), draft)
        if source is not None:
            draft.copies.append((source, request.block_table[len(shared)]))
        self._add_row(request, min(request.remaining, draft.budget), draft)
        return True

    def _fork_source(self, request: Request) -> Request | None:
        """The running sibling whose prompt is computed, if this request never ran itself.

        A leader that was preempted and runs again may still be computing its prompt.
        """
        leader = request.leader
        if leader is None or leader.status is not Status.RUNNING:
            return None
        if self.window and not leader.holds_window(self.window, self.pool.block_size):
            return None
        return leader if leader.num_applied_tokens >= leader.num_prompt_tokens else None

    def _find_prefix(self, request: Request) -> list[int]:
        """Cached whole blocks of the request's prefix, leaving at least one token to compute."""
        cache = self.pool.prefix_cache
        if not cache.enabled or request.prompt_logprobs_left:  # their logits are needed
            return []
        known, hashes, salt = request.token_ids, request.block_hashes, request.spec.cache_salt
        limit = (len(known) - 1) // self.pool.block_size
        reach = None if self.window is None else self.window - 1
        (cache.hash_known if reach is None else cache.extend_hashes)(hashes, salt, known, limit)
        return cache.match(hashes[:limit], known, reach)

    def _hold_partial(
        self, request: Request, shared: Sequence[int], fresh: int, draft: Draft
    ) -> PartialMatch | None:
        """A block from which to copy the tokens that follow the shared blocks, leaving at least one
        token to compute. It is held until the plan is made; None if there is no block to spare."""
        cache, known = self.pool.prefix_cache, request.token_ids
        salt = request.spec.cache_salt
        match = cache.match_partial(request.block_hashes, salt, known, len(shared))
        if match is None:
            return None
        held = [match.block]
        if not self.pool.has_room(fresh, (*shared, *held)):
            return None
        self.pool.share(held)
        draft.held += held
        self.counters.partial_copies += 1
        return match

    def _start(self, request: Request, computed: int, fork: Request | None) -> None:
        """Counters and the `started` output of a request that is scheduled for the first time."""
        if fork is None:
            request.cached_tokens = min(computed, request.num_prompt_tokens)
            self.counters.prefix_queried += request.num_prompt_tokens
            self.counters.prefix_hit += request.cached_tokens
        else:
            request.cached_tokens = fork.cached_tokens
        self.counters.prompt_tokens += request.num_prompt_tokens
        output = Output(request.key, request.index, started=True)
        output.cached_tokens = request.cached_tokens
        self.state.emit(output)

    # ------------------------------------------------------------ results

    def masks(self, plan: StepPlan) -> Masks:
        """The masks of the newest plan: see `Completion.masks`."""
        return self.completion.masks(plan)

    def apply(self, plan: StepPlan, result: StepResult) -> list[Output]:
        """Take in the result of the oldest plan in flight: see `Completion.apply`."""
        return self.completion.apply(plan, result)

    def fail(self, error_id: str) -> list[Output]:
        """A step failed: end all requests in flight; none of their new blocks becomes known."""
        self.completion.fail(error_id)
        return self.drain_outputs()

    def drain_outputs(self) -> list[Output]:
        """Outputs made since the last call, outside of apply."""
        return self.state.drain_outputs()

    # ------------------------------------------------------------ sight

    @property
    def pools(self) -> tuple[BlockPool, ...]:
        """All block pools."""
        return (self.pool,)

    @property
    def known(self) -> Known:
        """The index of cached blocks, for watching."""
        return self.pool.prefix_cache

    def knows(self, key: int) -> bool:
        """Whether there is state of an unfinished request of this key."""
        return key in self.state.by_key

    @property
    def num_running(self) -> int:
        return len(self.state.running)

    @property
    def num_waiting(self) -> int:
        return len(self.state.waiting)

    @property
    def num_in_flight(self) -> int:
        """Steps planned whose results have not been applied."""
        return len(self.completion.in_flight)

    @property
    def has_requests(self) -> bool:
        """Whether any request is unfinished or any step in flight."""
        return bool(self.state.by_key or self.completion.in_flight)

    def unfinished(self) -> Iterator[Request]:
        """All requests that have not ended."""
        return self.state.unfinished()
