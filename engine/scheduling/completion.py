"""Applies results: placeholders become tokens, ends are found, full blocks become known.

Invariant: there is one result per plan, and they come in order. A row's result counts for the
request of its key and index while that request is alive and still has the row's epoch; anything
else is dropped and counted as discarded. A full block is registered in the prefix cache only here,
when the step that filled it has been applied.
"""

import logging
import secrets
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from quire.engine.errors import ConstraintError, CorruptStateError, NotANumberError
from quire.engine.prompt_logprobs import record
from quire.engine.request import FinishReason, Output, TokenLogprob
from quire.engine.scheduling.block_pool import BlockPool
from quire.engine.scheduling.matching import Advance, Constrained, Mask, one_by_one
from quire.engine.scheduling.plan import Masks, PlanRow, StepPlan, StepResult
from quire.engine.scheduling.request import Request, Status
from quire.engine.scheduling.scheduler_state import SchedulerState

log = logging.getLogger(__name__)

_RUNNING = Status.RUNNING


class Flight(NamedTuple):
    """A plan in flight, and the live request of each of its rows, in order."""

    plan: StepPlan
    requests: tuple[Request, ...]


# A constrained row whose token has come (the last number is the count of outputs) and whose next
# mask is still to be made.
_Awaited = tuple[Request, Constrained, Output, int]


class Completion:
    """Takes in the results of the plans in flight."""

    def __init__(self, state: SchedulerState, window: int | None = None) -> None:
        """window: tokens that each token sees, including itself; None: all before it."""
        self.in_flight: deque[Flight] = deque()
        self.advance: Advance = one_by_one  # feeds a step's tokens to the constraints' matchers
        self._awaited: list[_Awaited] = []
        self._state = state
        self._block_size = state.pool.block_size
        self._window = window

    def launched(self, plan: StepPlan, requests: Sequence[Request]) -> None:
        """A plan was launched. requests: one for each of its rows, in order."""
        self.in_flight.append(Flight(plan, tuple(requests)))

    def hash_ahead(self) -> None:
        """Hash the blocks that the oldest plan in flight fills, while waiting for its result."""
        (plan, requests), cache = self.in_flight[0], self._state.pool.prefix_cache
        first = plan.num_decode_rows if cache.enabled else len(requests)
        for row, request in zip(plan.rows[first:], requests[first:], strict=True):
            full = (row.start + row.num_tokens) // self._block_size
            hashes, salt = request.block_hashes, request.spec.cache_salt
            cache.extend_hashes(hashes, salt, request.token_ids, full)

    def masks(self, plan: StepPlan) -> Masks:
        """The mask of each masked row of the oldest plan in flight: all tokens before are known.

        A request that has ended since it was planned has none: its token is dropped.
        """
        flight = self.in_flight[0]
        if flight.plan is not plan:
            raise ValueError(f"step {plan.step_id} is not the oldest in flight")
        return tuple(
            [
                (row.slot, request.constrained.mask)
                for row, request in zip(plan.rows, flight.requests, strict=True)
                if request.constrained
                and row.samples
                and row.slot == request.slot
                and request.status is _RUNNING
            ]
        )

    def apply(self, plan: StepPlan, result: StepResult) -> list[Output]:
        """Apply the result of the oldest plan in flight; returns the outputs.

        Raises ValueError, before anything has changed, if the result does not fit the plan. An
        error with one row's result ends only that request, with ERROR; raises CorruptStateError if
        that is not possible.
        """
        _check_size(plan, result)
        pooled = {one.slot: told for one, told in zip(plan.pooled, result.pooled, strict=True)}
        prompt_logprobs = {
            one.slot: told
            for one, told in zip(plan.prompt_logprobs, result.prompt_logprobs, strict=True)
        }
        flight, state = self._retire(plan), self._state
        outputs, counters = state.drain_outputs(), state.counters
        counters.steps += 1
        counters.mixed_steps += plan.is_mixed
        sampled = 0
        simple = plan.num_decode_rows if not result.logprobs and self._window is None else 0
        for at, (row, request) in enumerate(zip(plan.rows, flight.requests, strict=True)):
            try:
                done = at < simple and self._apply_next(row, request, result.tokens[at], outputs)
            except Exception:  # nothing was changed: it fails again below, for this row alone
                done = False
            if done:
                sampled += 1
                continue
            tokens: Sequence[int] = ()
            logprob = None
            if row.samples:
                tokens = result.tokens[sampled]
                logprob = result.logprobs[sampled] if result.logprobs else None
                sampled += 1
            read = prompt_logprobs.get(row.slot), pooled.get(row.slot)
            self._apply_whole(row, request, tokens, logprob, read, outputs)
        if self._awaited:
            self._match(outputs)
        outputs += state.drain_outputs()
        return outputs

    def _match(self, outputs: list[Output]) -> None:
        """Feed this step's tokens to the constraints' matchers, all rows at once."""
        awaited, self._awaited = self._awaited, []
        steps = [(one.matcher, output.token_ids[-1]) for _, one, output, _ in awaited]
        masks: Sequence[Mask | Exception]
        try:
            masks = self.advance(steps)
        except Exception as error:
            masks = [error] * len(steps)
        for (request, constrained, output, count), mask in zip(awaited, masks, strict=True):
            try:
                if isinstance(mask, Exception):
                    if not constrained.allows(output.token_ids[-1]):
                        raise RuntimeError("a token was drawn that its mask leaves out") from mask
                    raise mask
                if not constrained.prepare(count, mask):
                    self._state.end(request, FinishReason.STOP, output, handed_out=True)
                elif count >= request.sampling.max_tokens:
                    self._state.end(request, FinishReason.LENGTH, output, handed_out=True)
            except Exception as error:
                outputs[:] = [other for other in outputs if other is not output]
                self._fail_row(request, error, 1, outputs)

    def fail(self, error_id: str) -> None:
        """A step failed: end all requests in flight; none of their new blocks becomes known."""
        flights = tuple(self.in_flight)
        self.in_flight.clear()
        self._state.counters.failed_steps += len(flights)
        held = [request for flight in flights for request in flight.requests]
        for request in held:
            request.in_flight -= 1
        for request in held:
            if request.status is Status.FINISHED:
                self._state.release_if_idle(request)
            else:
                output = Output(request.key, request.index, error_id=error_id)
                self._state.end(request, FinishReason.ERROR, output)

    def _retire(self, plan: StepPlan) -> Flight:
        if not self.in_flight or self.in_flight[0].plan is not plan:
            raise ValueError(f"step {plan.step_id} is not the oldest in flight")
        return self.in_flight.popleft()

    # ------------------------------------------------------------ one row

    def _apply_next(
        self, row: PlanRow, request: Request, tokens: Sequence[int], outputs: list[Output]
    ) -> bool:
        """The fast path of `_apply_row` for most decode rows, where a token becomes known and
        nothing else happens. False: it is not such a row, and nothing has been changed."""
        (token,) = tokens
        known, prompt, end = request.token_ids, request.num_prompt_tokens, row.start + 1
        count = len(known) + 1 - prompt
        if (
            row.epoch != request.epoch
            or request.status is not _RUNNING
            or end <= prompt
            or not end % self._block_size
            or token < 0
            or token in request.ending_ids
            or count >= request.sampling.max_tokens
        ):
            return False
        known.append(token)  # comes first: it raises for what is no token
        self._state.counters.generated += 1
        request.in_flight -= 1
        request.num_applied_tokens = end
        request.num_placeholders -= 1
        request.emitted += 1
        preemptions, blocks = request.preemptions, request.peak_blocks
        output = Output(request.key, request.index, 0.0, 0.0, [token], preemptions, blocks)
        outputs.append(output)
        if request.constrained is not None:
            self._awaited.append((request, request.constrained, output, count))
        return True

    def _apply_whole(
        self,
        row: PlanRow,
        request: Request,
        tokens: Sequence[int],
        logprob: TokenLogprob | None,
        read: tuple[bytes | None, bytes | None],
        outputs: list[Output],
    ) -> None:
        """The general case of a row. read: `prompt_logprobs` and `pooled` of its prompt."""
        prompt_logprobs, pooled = read
        request.in_flight -= 1
        said = len(outputs)
        try:
            if prompt_logprobs is not None:
                self._emit_prompt_logprobs(row, request, prompt_logprobs, outputs)
            if pooled is not None:
                self._apply_pooled(row, request, pooled, outputs)
            else:
                self._apply_row(row, request, tokens, logprob, outputs)
        except Exception as error:
            del outputs[said:]
            self._fail_row(request, error, len(tokens), outputs)

    def _apply_row(
        self,
        row: PlanRow,
        request: Request,
        tokens: Sequence[int],
        logprob: TokenLogprob | None,
        outputs: list[Output],
    ) -> None:
        counters = self._state.counters
        counters.generated += len(tokens)
        end = row.start + row.num_tokens
        if end <= request.num_prompt_tokens or row.num_tokens > 1:
            counters.prefill_computed += row.num_tokens
        if request.status is Status.FINISHED:
            counters.discarded += len(tokens)
            self._state.release_if_idle(request)
        elif row.epoch != request.epoch:
            counters.discarded += len(tokens)
        else:
            for token in tokens:
                if token < 0:  # checked before their blocks become known
                    counters.not_a_number += 1
                    raise NotANumberError("the model's logits are not finite numbers")
            request.num_applied_tokens = end
            if end // self._block_size > request.num_registered_blocks:
                self._register_full_blocks(request)
            if self._window is not None:
                self._give_back_passed(request, end + 1 - self._window)
            if row.start < request.num_prompt_tokens <= end:
                self._state.waiting.release(request)
            self._append(request, tokens, logprob, outputs)

    def _apply_pooled(
        self, row: PlanRow, request: Request, pooled: bytes, outputs: list[Output]
    ) -> None:
        """The last row of a request with a pooled output. pooled: see StepResult."""
        lives = row.epoch == request.epoch and request.status is not Status.FINISHED
        if lives and not pooled:  # checked before its blocks become known
            self._state.counters.not_a_number += 1
            raise NotANumberError("what was to be read of the prompt is no finite number")
        self._apply_row(row, request, (), None, outputs)
        if not lives:
            return
        output = Output(request.key, request.index, pooled=pooled)
        output.preemptions, output.peak_blocks = request.preemptions, request.peak_blocks
        outputs.append(output)
        self._state.end(request, FinishReason.STOP, output, handed_out=True)

    def _emit_prompt_logprobs(
        self, row: PlanRow, request: Request, told: bytes, outputs: list[Output]
    ) -> None:
        """Output more of the prompt's log-probabilities, without those already output before a
        preemption. told: see StepResult."""
        if row.epoch != request.epoch or request.status is Status.FINISHED:
            return
        if not told:
            self._state.counters.not_a_number += 1
            raise NotANumberError("the log-probabilities of the prompt are not finite numbers")
        top = request.spec.prompt_logprobs
        assert top is not None
        size = record(top).itemsize
        said = request.num_prompt_tokens - 1 - request.prompt_logprobs_left
        new = told[max(said - row.start, 0) * size :]
        if new:
            request.prompt_logprobs_left -= len(new) // size
            output = Output(request.key, request.index, prompt_logprobs=new)
            output.preemptions, output.peak_blocks = request.preemptions, request.peak_blocks
            outputs.append(output)

    def _append(
        self,
        request: Request,
        tokens: Sequence[int],
        logprob: TokenLogprob | None,
        outputs: list[Output],
    ) -> None:
        """Fill placeholders with sampled tokens; end the request where one of them does. A
        constrained row has one token, for its one mask, and is ended after all rows."""
        params, known = request.sampling, request.token_ids
        for token in tokens:
            request.num_placeholders -= 1
            known.append(token)
            request.emitted += 1
            key, index = request.key, request.index
            preemptions, blocks = request.preemptions, request.peak_blocks
            output = Output(key, index, 0.0, 0.0, [token], preemptions, blocks)
            if logprob is not None:
                output.logprobs = [logprob]
            outputs.append(output)
            count = len(known) - request.num_prompt_tokens
            if count >= params.min_tokens and token in request.ending_ids:
                stop = FinishReason.STOP
                self._state.end(request, stop, output, stop_token_id=token, handed_out=True)
                return
            if request.constrained is not None:
                self._awaited.append((request, request.constrained, output, count))
            elif count >= params.max_tokens:
                self._state.end(request, FinishReason.LENGTH, output, handed_out=True)
                return

    def _register_full_blocks(self, request: Request) -> None:
        cache, full = self._state.pool.prefix_cache, request.num_applied_tokens // self._block_size
        if not cache.enabled:
            return
        hashes, known, salt = request.block_hashes, request.token_ids, request.spec.cache_salt
        cache.extend_hashes(hashes, salt, known, full)
        first = request.num_registered_blocks
        cache.register(request.block_table[first:full], hashes, salt, known, first)
        request.num_registered_blocks = full

    def _give_back_passed(self, request: Request, first: int) -> None:
        """Release the blocks before token `first`, which no later token sees. Steps in flight do
        not read them either; their next owner writes after those steps, in stream order."""
        passed = max(first, 0) // self._block_size
        begin = request.num_passed_blocks
        if passed > begin:
            pool, table = self._windowed(request)
            pool.release(table[begin:passed])
            table[begin:passed] = [0] * (passed - begin)
            request.num_passed_blocks = passed

    def _windowed(self, request: Request) -> tuple[BlockPool, list[int]]:
        """The pool and the request's block table of the sliding-window layers."""
        return self._state.pool, request.block_table

    def _fail_row(
        self, request: Request, error: Exception, tokens: int, outputs: list[Output]
    ) -> None:
        """End one request with an error of its own, for which `tokens` were sampled in vain. Raises
        CorruptStateError if the request has half ended already."""
        if request.status is Status.FINISHED:
            self._state.emit(*outputs)  # those of the rows before it are valid
            raise CorruptStateError(str(error)) from error
        self._state.counters.discarded += tokens
        output = Output(request.key, request.index)
        if isinstance(error, ConstraintError):  # the constraint turned out to be unsatisfiable
            output.dead_end = str(error)
        else:
            output.error_id = secrets.token_hex(4)
            log.error("a request failed (%s)", output.error_id, exc_info=error)
        self._state.end(request, FinishReason.ERROR, output)


def _check_size(plan: StepPlan, result: StepResult) -> None:
    """Raises ValueError unless each row that samples has its tokens."""
    samples = decode = plan.num_decode_rows  # decode rows come first, and all of them sample
    if decode < len(plan.rows):
        samples += sum([row.samples for row in plan.rows[decode:]])
    if len(result.tokens) != samples:
        raise ValueError(f"{len(result.tokens)} rows of tokens for {samples} that sample")
