"""Drives scheduler and pool against the toy device, and checks everything after every turn.

Invariant: whatever is done to it, each index ends exactly once, its tokens are a prefix of what the
toy model gives it alone (the whole of it, if nobody cut it short), and when the last request has
gone every block and every slot is free.
"""

from collections import deque
from typing import Any

from support.simulation import Record, Shape, Tally
from support.toy_device import EOS, Oracle, PairedDevice, ToyDevice

from quire.engine.request import FinishReason, GenerationRequest, Output
from quire.engine.scheduling.block_pool import NULL_BLOCK, BlockPool
from quire.engine.scheduling.plan import PlanRow, StepPlan, StepResult
from quire.engine.scheduling.request import Request, Status
from quire.engine.scheduling.scheduler import Scheduler
from quire.engine.scheduling.two_pools import TwoPoolScheduler


class Simulator:
    """A scheduler, its pool, a toy device, and the clients' side of every request."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.pool = BlockPool(shape.num_blocks, shape.block_size, shape.caching, shape.pool_seed)
        self.window_pool: BlockPool | None = None  # of layers with a window beside others
        self.scheduler = self._new_scheduler()
        self.records: dict[tuple[int, int], Record] = {}
        self.open: dict[tuple[int, int], Record] = {}
        self.log: list[tuple[object, ...]] | None = None  # signatures of plans, if asked for
        self.device = self._new_device()
        self.in_flight: deque[tuple[StepPlan, list[list[int]]]] = deque()
        self.tally = Tally()
        self._launched = False  # in the present turn

    def _new_scheduler(self) -> Scheduler:
        shape = self.shape
        options: dict[str, Any] = {
            "max_num_seqs": shape.max_num_seqs,
            "max_num_batched_tokens": shape.max_num_batched_tokens,
            "max_model_len": shape.max_model_len,
            "two_phase": shape.two_phase,
            "window": shape.window,
        }
        if not shape.window_blocks:
            return Scheduler(self.pool, **options)
        self.window_pool = BlockPool(
            shape.window_blocks, shape.block_size, shape.caching, shape.pool_seed
        )
        return TwoPoolScheduler(self.pool, self.window_pool, **options)

    def _new_device(self) -> ToyDevice:
        shape = self.shape
        size = shape.block_size, shape.max_num_seqs, shape.vocab

        def oracle_of(key: int, index: int) -> Oracle:
            return self.records[key, index].oracle

        if self.window_pool is None:
            return ToyDevice(shape.num_blocks, *size, oracle_of, shape.window)
        windowed = ToyDevice(shape.window_blocks, *size, oracle_of, shape.window)
        return PairedDevice(windowed, shape.num_blocks, *size, oracle_of)

    # ------------------------------------------------------------ what clients do

    def submit(self, spec: GenerationRequest) -> None:
        """Queue a request. Raises RequestError as the scheduler does."""
        oracles = [Oracle(spec, index, self.shape.vocab) for index in range(spec.n)]
        self.scheduler.submit(spec)
        for index, oracle in enumerate(oracles):
            record = Record(spec, oracle)
            self.records[spec.key, index] = self.open[spec.key, index] = record
        self.tally.resumed += bool(spec.resume_token_ids)

    def abort(self, key: int) -> None:
        """A client goes away; perhaps long after its request has ended."""
        for (open_key, _), record in self.open.items():
            if open_key == key:
                record.cut = FinishReason.CANCELLED
        self.scheduler.abort(key)

    def finish(self, key: int, index: int, kept: int) -> None:
        """A stop string was found behind the first `kept` of the index's outputs."""
        lives = any((r.key, r.index) == (key, index) for r in self.scheduler.unfinished())
        self.scheduler.finish(key, index, kept)
        if lives:
            record = self.open[key, index]
            record.dropped = len(record.tokens) - kept
            self._end(key, index, FinishReason.STOP)
            self.tally.finishes += 1

    # ------------------------------------------------------------ turns

    def turn(self) -> None:
        """Plan and launch one step if there is any; apply the oldest if enough are in flight."""
        self.launch()
        enough = self.shape.depth if self._launched else 0
        if len(self.in_flight) > enough:
            self.apply()

    def launch(self) -> None:
        """Plan a step and execute it on the device."""
        plan = self._plan()
        if plan is not None:
            self.in_flight.append((plan, self.device.execute(plan)))
        self.check()

    def apply(self) -> None:
        """Take in the oldest result."""
        plan, tokens = self.in_flight.popleft()
        rows = [row for row in plan.rows if row.samples]
        requests = self.requests_of(plan)
        self.tally.stale_epochs += sum(row.epoch != requests[row].epoch for row in rows)
        self._hear(self.scheduler.apply(plan, StepResult(tokens)))
        self.tally.steps += 1
        self.check()

    def fail(self, rows: int) -> None:
        """The next step fails after some of its rows, and takes those in flight along."""
        plan = self._plan()
        if plan is not None:
            self.device.spoil(plan, rows)
        held = [p for p, _ in self.in_flight] + ([plan] if plan is not None else [])
        self.in_flight.clear()
        for row in (row for p in held for row in p.rows):
            record = self.open.get((row.key, row.index))
            if record is not None:
                record.cut = FinishReason.ERROR
        self._hear(self.scheduler.fail("e"))
        self.tally.failures += bool(held)
        self.check()

    def drain(self, bound: int | None = None) -> None:
        """Run until nothing is left, in at most `bound` turns, and check that nothing is held."""
        turns, bound = 0, self.work_bound() + 4 if bound is None else bound
        while self.scheduler.has_requests:
            assert turns < bound, f"{len(self.open)} requests have not ended after {bound} turns"
            self.turn()
            turns += 1
        self._hear(self.scheduler.drain_outputs())
        self._check_empty()

    def work_bound(self) -> int:
        """Turns that suffice to drain: each one advances the first in rank or one beside it."""
        tokens = sum(
            len(r.spec.prompt_token_ids) + r.spec.sampling.max_tokens for r in self.open.values()
        )
        return (self.shape.depth + 1) * (2 * tokens + 8)

    def _plan(self) -> StepPlan | None:
        self.tally.turns += 1
        plan = self.scheduler.schedule()
        self._launched = plan is not None
        self._hear(self.scheduler.drain_outputs())
        if plan is not None:
            self._check_plan(plan)
            self._check_copies(plan)
            copies = self.scheduler.counters.partial_copies
            self.tally.forks += len(plan.copies) - (copies - self.tally.partial_copies)
            self.tally.partial_copies = copies
            if self.log is not None:
                self.log.append(_signature(plan))
        return plan

    def requests_of(self, plan: StepPlan) -> dict[PlanRow, Request]:
        """The live requests behind a plan in flight."""
        (flight,) = [f for f in self.scheduler.completion.in_flight if f.plan is plan]
        return dict(zip(plan.rows, flight.requests, strict=True))

    # ------------------------------------------------------------ what clients hear

    def _hear(self, outputs: list[Output]) -> None:
        for output in outputs:
            record = self.records[output.key, output.index]
            assert record.ended is None, "an index speaks after its end"
            if output.started:
                assert not record.started, "an index starts twice"
                record.started = True
                self.tally.hits += output.cached_tokens > 0
                assert output.cached_tokens <= len(record.spec.prompt_token_ids)
            assert record.started or not output.token_ids, "tokens before the start"
            record.tokens.extend(output.token_ids)
            assert record.tokens == record.oracle.expected[: len(record.tokens)], (
                f"request {output.key}.{output.index} differs from itself alone"
            )
            if output.finish is not None:
                self._check_end(record, output)
                self._end(output.key, output.index, output.finish)

    def _check_end(self, record: Record, output: Output) -> None:
        if output.finish in (FinishReason.CANCELLED, FinishReason.ERROR):
            assert record.cut is output.finish, f"{output.finish} out of the blue"
            return
        assert record.tokens == record.oracle.expected, "ended early"
        assert (output.finish is FinishReason.STOP) == record.oracle.stops
        assert output.stop_token_id == (EOS if record.oracle.stops else None)

    def _end(self, key: int, index: int, reason: FinishReason) -> None:
        record = self.open.pop((key, index))
        record.ended = reason
        self.tally.ended += 1

    # ------------------------------------------------------------ checks

    def check(self) -> None:
        """Everything that must hold between any two calls of the scheduler."""
        holders = {id(r): r for r in self.scheduler.unfinished()}
        assert {(r.key, r.index) for r in holders.values()} == set(self.open)
        expected_in_flight: dict[int, int] = {}
        placeholders: dict[int, int] = {}
        for plan, _ in self.in_flight:
            for row, request in self.requests_of(plan).items():
                holders[id(request)] = request
                expected_in_flight[id(request)] = expected_in_flight.get(id(request), 0) + 1
                if row.samples and row.epoch == request.epoch:
                    placeholders[id(request)] = placeholders.get(id(request), 0) + 1
        requests = holders.values()
        gaps = self.shape.window is not None and self.window_pool is None
        self.pool.check([r.block_table for r in requests], gaps=gaps)
        if self.window_pool is not None:
            self.window_pool.check([r.window_table for r in requests], gaps=True)
        for request in requests:
            assert request.in_flight == expected_in_flight.get(id(request), 0)
            self._check_request(request, placeholders.get(id(request), 0))
        slots = [r.slot for r in requests if r.slot >= 0] + self.scheduler.state.free_slots
        assert sorted(slots) == list(range(self.shape.max_num_seqs)), "a slot is lost or doubled"
        waiting = sum(r.status is Status.WAITING for r in requests)
        assert self.scheduler.num_waiting == waiting
        assert self.scheduler.num_running == sum(r.status is Status.RUNNING for r in requests)
        assert len(self.scheduler.state.waiting._oldest) <= 3 * waiting + 65, "the queue hoards"
        clients = {r.spec.client for r in requests}
        for heap in (
            self.scheduler.state.waiting._clients,
            self.scheduler.state.waiting.shares._clients._least,
        ):
            assert len(heap) <= 3 * len(clients) + 65, "clients are hoarded"

    def _check_request(self, request: Request, placeholders: int) -> None:
        if request.status is Status.FINISHED:
            return
        assert request.num_placeholders == placeholders
        assert request.num_applied_tokens <= request.num_computed_tokens <= request.num_tokens
        assert request.num_tokens <= request.max_total_tokens
        if request.status is Status.WAITING:
            assert not request.block_table and request.slot == -1
        else:
            held = len(request.block_table)
            assert held >= self.pool.blocks_needed(request.num_computed_tokens)
            assert held <= self.pool.blocks_needed(request.num_tokens)
        known = self.pool.prefix_cache._tokens_of
        columns = [column for column, block in enumerate(request.block_table) if block in known]
        if columns:
            end = (columns[-1] + 1) * self.shape.block_size
            assert end <= request.num_applied_tokens, "a block is known before it is computed"
            full = self.pool.prefix_cache._hash_of
            assert all(request.block_table[at] in full for at in columns), "a tail is in use"

    def _check_plan(self, plan: StepPlan) -> None:
        shape, pool = self.shape, self.pool
        assert 0 < plan.num_tokens <= shape.max_num_batched_tokens
        assert plan.num_tokens == sum(row.num_tokens for row in plan.rows)
        assert len({row.slot for row in plan.rows}) == len(plan.rows) <= shape.max_num_seqs
        for number, (row, request) in enumerate(self.requests_of(plan).items()):
            assert (row.key, row.index) == (request.key, request.index)
            assert row.num_tokens > 0 and row.epoch == request.epoch
            assert request.status is Status.RUNNING and row.slot == request.slot
            is_decode = row.num_tokens == 1 and row.samples
            assert is_decode == (number < plan.num_decode_rows), "decode rows come first"
            end = row.start + row.num_tokens
            assert end <= request.max_total_tokens - 1
            size = shape.block_size
            for column in range(row.start // size, (end - 1) // size + 1):
                self._check_own(pool, request.block_table[column])
                if self.window_pool is not None:
                    self._check_own(self.window_pool, request.window_table[column])
        if shape.two_phase:
            self._check_phases(plan)

    @staticmethod
    def _check_own(pool: BlockPool, block: int) -> None:
        assert pool._ref_counts[block] == 1, "a step writes a block with two owners"
        assert block not in pool.prefix_cache, "a step writes a block the index names"

    def _check_copies(self, plan: StepPlan) -> None:
        """Each goes into a fresh block of a request that the plan admits, one a request at most,
        where its own tokens begin. No source is a target, and none is written by the same plan but
        the last block of a leader, from which siblings fork."""
        pool, size = self.pool, self.shape.block_size
        targets = [target for _, target in plan.copies]
        sources = {source for source, _ in plan.copies}
        computed = {one.slot: one.num_computed for one in plan.admitted}
        found = []
        for row, request in self.requests_of(plan).items():
            end = row.start + row.num_tokens
            written = sources & set(request.block_table[row.start // size : -(-end // size)])
            assert not any(map(pool.prefix_cache.__contains__, written)), "a source is written"
            if row.slot in computed:
                columns = {(row.start - 1) // size, row.start // size} - {-1}
                own = [request.block_table[column] for column in columns]
                found.append([block for block in own if block in targets])
        assert all(len(blocks) <= 1 for blocks in found), "a request copies twice"
        assert sorted(block for blocks in found for block in blocks) == sorted(targets)
        assert not sources & {NULL_BLOCK, *targets}
        tables = [(r.key, r.block_table) for r in self.scheduler.unfinished()]
        keys = {block: key for key, table in tables for block in table if block in targets}
        for source, target in plan.copies:
            sibling = any(key == keys[target] and source in table for key, table in tables)
            assert sibling or source in pool.prefix_cache, "a source was given out"
        for block in targets:
            assert pool._ref_counts[block] == 1 and block not in pool.prefix_cache

    @staticmethod
    def _check_phases(plan: StepPlan) -> None:
        """No row that goes on generating rides with prompt tokens."""
        if any(row.num_tokens > 1 for row in plan.rows):
            generating = plan.rows[: plan.num_decode_rows]
            admitted = {one.slot for one in plan.admitted}
            assert all(row.slot in admitted for row in generating), "phases are mixed"

    def _check_empty(self) -> None:
        assert not self.open and not self.in_flight
        for pool in self.scheduler.pools:
            assert pool.num_free == pool.num_usable, "blocks leak"
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0
        assert all(record.ended is not None for record in self.records.values())
        counters = self.scheduler.counters
        kept = sum(len(r.tokens) - r.dropped for r in self.records.values())
        assert counters.generated - counters.discarded == kept, "tokens are miscounted"
        queue = self.scheduler.state.waiting
        assert not queue.shares.served and not queue._ranked, "a client is remembered for nothing"

    def total(self) -> Tally:
        """The tally, with the scheduler's and the pool's own counters."""
        counters = self.scheduler.counters
        self.tally.preemptions = counters.preemptions
        self.tally.evictions = self.pool.evictions
        self.tally.duplicates = self.pool.prefix_cache.duplicates
        self.tally.aborts_in_flight = counters.aborted_in_flight
        self.tally.discarded = counters.discarded
        return self.tally


def _signature(plan: StepPlan) -> tuple[object, ...]:
    return plan.plain()
