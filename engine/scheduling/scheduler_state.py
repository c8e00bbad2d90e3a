"""The state of all requests: waiting, running in a slot, or ended.

Invariant: a request changes state only here. It waits, or runs and holds a slot and the blocks of
its table, or has ended, which happens exactly once. A request that has ended keeps its slot and
blocks until no step in flight includes it. The outputs of state changes are kept for
`drain_outputs`, unless the caller hands them out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quire.engine.request import FinishReason, GenerationRequest, Output
from quire.engine.scheduling.block_pool import BlockPool
from quire.engine.scheduling.matching import Constrained
from quire.engine.scheduling.request import Request, Status
from quire.engine.scheduling.waiting_queue import WaitingQueue


@dataclass(slots=True)
class SchedulerCounters:
    """Counters that only rise."""

    prompt_tokens: int = 0
    prefill_computed: int = 0
    prefix_queried: int = 0
    prefix_hit: int = 0
    partial_copies: int = 0  # admissions that copied the beginning of a block
    preemptions: int = 0
    generated: int = 0
    discarded: int = 0
    aborted_in_flight: int = 0
    steps: int = 0
    mixed_steps: int = 0
    failed_steps: int = 0
    not_a_number: int = 0  # requests ended because their logits were not finite numbers


class SchedulerState:
    """All unfinished requests, over one BlockPool."""

    def __init__(self, pool: BlockPool, max_num_seqs: int) -> None:
        self.pool = pool
        self.counters = SchedulerCounters()
        self.waiting = WaitingQueue()
        self.running: list[Request] = []  # in rank: priority, then arrival
        self.by_key: dict[int, list[Request]] = {}  # unfinished ones
        self.free_slots = list(range(max_num_seqs - 1, -1, -1))
        self._outputs: list[Output] = []
        self._arrivals = 0
        self._admissions = 0

    # ------------------------------------------------------------ coming

    def enter(self, spec: GenerationRequest, constrained: Sequence[Constrained] = ()) -> Request:
        """Queue all indices of a request; returns the first. On an error none is queued."""
        matched: Sequence[Constrained | None] = constrained or [None] * spec.n
        leader, *followers = siblings = [
            self._arrive(spec, index, one) for index, one in enumerate(matched)
        ]
        # Everything that can fail has been done; state changes from here on.
        self.by_key[spec.key] = siblings
        for _ in siblings:
            self.waiting.enter(spec.client, spec.user)
        self.waiting.push(leader)
        for request in followers:
            request.leader = leader
            self.waiting.hold(leader, request)
        return leader

    def _arrive(
        self, spec: GenerationRequest, index: int, constrained: Constrained | None
    ) -> Request:
        self._arrivals += 1
        return Request(spec, index, self._arrivals, constrained)

    # ------------------------------------------------------------ running

    def admit(self, request: Request, shared: Sequence[int], computed: int) -> None:
        """Give the head of the queue a slot. shared: cached blocks for the start of its table.
        computed: tokens in the cache when its first step begins, in those blocks or copied by that
        step."""
        self.pool.share(shared)
        self.waiting.take(request)
        request.leader = None
        request.slot = self.free_slots.pop()
        self._admissions += 1
        request.admission = self._admissions
        request.num_computed_tokens = computed
        request.num_applied_tokens = len(shared) * self.pool.block_size
        request.num_registered_blocks = len(shared)
        request.num_passed_blocks = next((i for i, b in enumerate(shared) if b), len(shared))
        self._insert_running(request)

    def _insert_running(self, request: Request) -> None:
        rank = (-request.priority, request.arrival)
        position = len(self.running)
        while position and rank < (
            -self.running[position - 1].priority,
            self.running[position - 1].arrival,
        ):
            position -= 1
        self.running.insert(position, request)

    def preempt(self, request: Request) -> None:
        """Return it to the queue without blocks; results already planned no longer count."""
        request.epoch += 1
        request.preemptions += 1
        self.counters.preemptions += 1
        self.running.remove(request)
        self._vacate(request)
        request.num_placeholders = 0
        request.num_computed_tokens = 0
        request.num_applied_tokens = 0
        request.num_registered_blocks = 0
        self.waiting.push(request)

    # ------------------------------------------------------------ going

    def end(
        self,
        request: Request,
        reason: FinishReason,
        output: Output | None,
        *,
        stop_token_id: int | None = None,
        handed_out: bool = False,
    ) -> None:
        """The only terminal transition. Blocks stay until no step in flight includes the request.

        output: reports the end; None: nothing does. handed_out: by the caller.
        """
        was, request.status = request.status, Status.FINISHED
        if was is Status.RUNNING:
            self.running.remove(request)
        else:
            self.waiting.forget(request)
        self.waiting.release(request)
        self.waiting.leave(request.spec.client, request.spec.user)
        if reason is not FinishReason.ERROR:
            self._register_tail(request)
        siblings = self.by_key[request.key]
        siblings.remove(request)
        if not siblings:
            del self.by_key[request.key]
        self.release_if_idle(request)
        if output is not None:
            output.finish = reason
            output.stop_token_id = stop_token_id
            if not handed_out:
                output.preemptions, output.peak_blocks = request.preemptions, request.peak_blocks
                self._outputs.append(output)

    def _register_tail(self, request: Request) -> None:
        """Index the last, partly filled block: what applied steps have computed can be copied.

        A step in flight may still write after that part, but never into it.
        """
        cache, applied = self.pool.prefix_cache, request.num_applied_tokens
        full, rest = divmod(applied, self.pool.block_size)
        if not rest or not cache.enabled:
            return
        hashes, salt, known = request.block_hashes, request.spec.cache_salt, request.token_ids
        cache.extend_hashes(hashes, salt, known, full)
        cache.register_tail(request.block_table[full], hashes, salt, known, applied)

    def release_if_idle(self, request: Request) -> None:
        """Release slot and blocks of an ended request once no step in flight includes it."""
        if request.in_flight == 0:
            self._vacate(request)

    def _vacate(self, request: Request) -> None:
        """Give back blocks and slot."""
        self.pool.release(request.block_table)
        request.block_table = []
        if request.slot >= 0:
            self.free_slots.append(request.slot)
            request.slot = -1

    # ------------------------------------------------------------ outputs and views

    def emit(self, *outputs: Output) -> None:
        """Keep them for `drain_outputs`."""
        self._outputs.extend(outputs)

    def drain_outputs(self) -> list[Output]:
        """The outputs kept since the last call."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def unfinished(self) -> Iterator[Request]:
        """All requests that have not ended."""
        for siblings in self.by_key.values():
            yield from siblings
