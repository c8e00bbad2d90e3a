"""One test for each defect of scheduling and caching that users of comparable systems reported.

What each system got wrong stands in the test's first line; what Quire does instead is asserted. A
test is named after where it was reported.
"""

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.harness import ask, generate, run, serving
from support.simulation import Shape
from support.simulator import Simulator
from support.small_engine import Setup, build_core, load_model, model_config
from support.small_engine import run as run_core
from support.toy_device import ToyDevice
from support.traffic import run_episode, run_steps

from quire import engine
from quire.engine.config import EngineConfig
from quire.engine.errors import RequestError
from quire.engine.loop.core import EngineCore
from quire.engine.request import FinishReason, GenerationRequest, SamplingParams
from quire.engine.scheduling.block_pool import BlockPool
from quire.engine.scheduling.plan import StepPlan, StepResult
from quire.engine.startup.build_engine import build_engine


def request(key: int, prompt: Any, max_tokens: int = 4, **more: Any) -> GenerationRequest:
    return GenerationRequest(key, tuple(prompt), SamplingParams(max_tokens=max_tokens), **more)


def simulate(**shape: Any) -> Simulator:
    """The simulator checks pool, plans, cache content and tokens after every turn."""
    return Simulator(replace(Shape(depth=0, num_blocks=40, max_num_batched_tokens=64), **shape))


def hashes_of(pool: BlockPool, tokens: list[int], salt: bytes = b"") -> list[bytes]:
    hashes: list[bytes] = []
    pool.prefix_cache.extend_hashes(hashes, salt, tokens, len(tokens) // pool.block_size)
    return hashes


# ================================================================ prefix cache and block pool


@pytest.mark.parametrize("length", (4, 8, 12))
def test_nano_vllm_114_prompt_wholly_cached(length: int) -> None:
    """A prompt that lay wholly in the cache gave query length 0 and a crash."""
    simulator = simulate()
    for key in (1, 2):
        simulator.submit(request(key, [1] * length))
        simulator.launch()
        (row,) = simulator.in_flight[-1][0].rows
        computed = 0 if key == 1 else length - 1
        assert (row.start, row.num_tokens) == (computed, length - computed)
        simulator.drain()


def test_nano_vllm_153_reallocated_block_kept_its_hash() -> None:
    """A block taken for something else kept its old hash and served the wrong content."""
    simulator = simulate(num_blocks=4)
    simulator.submit(request(1, [1] * 9, 1))
    simulator.drain()
    simulator.submit(request(2, [2] * 9, 1))  # takes all blocks, the first one's among them
    simulator.drain()
    simulator.submit(request(3, [1] * 9, 1))
    simulator.drain()
    assert simulator.tally.hits == 0
    assert simulator.pool.evictions > 0


def test_nano_vllm_208_prefix_that_no_step_has_computed_yet() -> None:
    """Two requests of one step shared blocks that this very step was to fill, and the second
    registration overwrote the first."""
    simulator = simulate()
    for key in (1, 2):
        simulator.submit(request(key, [1] * 9, 8))
    simulator.launch()
    assert [row.start for row in simulator.in_flight[-1][0].rows] == [0, 0]
    assert simulator.pool.num_shared == 0
    simulator.apply()
    assert simulator.pool.prefix_cache.duplicates == 2, "one hash names both"
    simulator.abort(1)  # the first one's blocks go; the second one's are as good
    simulator.submit(request(3, [1] * 9, 2))
    simulator.drain()
    assert simulator.tally.hits == 1


def test_nano_vllm_207_counts_from_before_a_hit_after_preemption() -> None:
    """Counts taken before `allocate` gave an IndexError when a preempted request came back to a
    prefix of its own that was still cached."""
    simulator = simulate(num_blocks=11, max_num_seqs=3)
    for key in (1, 2, 3):
        simulator.submit(request(key, [key] * 11, 14))
    back_on_a_hit = 0
    while simulator.open:
        simulator.launch()
        if simulator.in_flight:
            plan = simulator.in_flight[-1][0]
            by_slot = {r.slot: r for r in simulator.requests_of(plan).values()}
            back_on_a_hit += sum(
                by_slot[one.slot].preemptions > 0 and one.num_computed > 0 for one in plan.admitted
            )
            simulator.apply()
    assert back_on_a_hit > 0
    simulator._check_empty()


@pytest.mark.parametrize("size", (1, 2, 3, 4, 5, 16))
def test_nano_vllm_30_block_boundary(size: int) -> None:
    """`len % block_size == 1` was read as a bug again and again: a block is taken when the first
    token that needs it is computed, not before and not after."""
    simulator = simulate(block_size=size, num_blocks=90, max_model_len=80)
    simulator.submit(request(1, [1] * (2 * size - 1), 2 * size + 3))
    (running,) = simulator.scheduler.unfinished()
    while simulator.open:
        simulator.launch()
        assert len(running.block_table) == -(-running.num_computed_tokens // size)
        simulator.apply()


def test_minivllm_70_reference_counts_under_traffic() -> None:
    """A reference count of 0 at allocation, an off by one, and `[-0:]` that is the whole list."""
    pool = BlockPool(4, 2)
    table = pool.allocate(1)
    pool.check([table])
    pool.share(table)
    pool.check([table, table])
    pool.release([])
    pool.check([table, table])
    tally, _ = run_steps(1500, first_seed=7000)  # `check` after each step
    assert tally.preemptions and tally.hits and tally.evictions


def test_minivllm_53_more_blocks_counted_than_the_cache_has() -> None:
    """The block manager's number and the tensor's were computed apart."""
    config = EngineConfig(
        model="random:tiny", device="cpu", num_blocks=13, max_num_seqs=2, max_model_len=64
    )
    built = build_engine(config, lambda _stage, _share: None)
    pool, kv = built.core.scheduler.pool, built.runner._kv
    assert pool.num_blocks == kv.num_blocks == kv.v.shape[1]
    assert max(pool.allocate(pool.num_free)) == kv.num_blocks - 1
    assert built.info.num_blocks == pool.num_usable


def test_minivllm_98_hit_whose_cache_prefill_ignored() -> None:
    """Blocks were shared, but prefill ignored what they held and positions began at 0."""
    model, ops = load_model(model_config(), seed=1)
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=2)
    specs = [replace(request(1, [5 + i % 7 for i in range(22)]), sampling=params)]
    off = run_core(build_core(model, ops, Setup()), specs)[1, 0]
    core = build_core(model, ops, Setup(caching=True))
    cold, hot = (run_core(core, specs)[1, 0] for _ in range(2))
    assert (cold.cached_tokens, hot.cached_tokens) == (0, 21)
    assert off.token_ids == cold.token_ids == hot.token_ids
    assert len(set(off.token_ids)) > 3


def test_vllm_11829_collisions_across_tenants() -> None:
    """64-bit hashes with a seed anyone knew, the same for all tenants."""
    pool, other = BlockPool(9, 4), BlockPool(9, 4)
    tokens = [1, 2, 3, 4]
    (block_hash,) = hashes_of(pool, tokens, b"a")
    assert len(block_hash) == 16
    assert hashes_of(other, tokens, b"a") != [block_hash], "the seed is each process's own"
    assert hashes_of(pool, tokens, b"b") != [block_hash], "the salt is each tenant's own"
    pool.prefix_cache.register(pool.allocate(1)[:1], [block_hash], b"a", tokens, 0)
    assert pool.prefix_cache.match([block_hash], [9, 9, 9, 9]) == [], "tokens are compared on a hit"
    assert len(pool.prefix_cache.match([block_hash], tokens)) == 1


def test_tgi_2489_blocks_freed_before_prefill_served_as_a_prefix() -> None:
    """An aborted request's blocks went back as a known prefix though nothing was in them."""
    for leave in ("abort", "fail"):
        simulator = simulate(max_num_batched_tokens=8, depth=1)
        simulator.submit(request(1, [1] * 30))
        simulator.launch()  # the first chunk alone, and it is not applied
        if leave == "abort":
            simulator.abort(1)
            simulator.apply()
        else:
            simulator.fail(0)
        simulator.submit(request(2, [1] * 30))
        simulator.drain()  # the device would tell a hit on what was never written
        assert simulator.tally.hits == 0


def test_mini_sglang_149_check_that_checks_nothing() -> None:
    """The integrity check was a no-op."""
    pool = BlockPool(5, 2)
    table = pool.allocate(2)
    pool.prefix_cache.register(table[:1], hashes_of(pool, [1, 1]), b"", [1, 1], 0)
    for tables in ([], [table, table], [table[:1]], [table, [4]], [[0], table]):
        with pytest.raises(AssertionError):
            pool.check(tables)
    pool.check([table])


# ================================================================ scheduling


def test_nano_vllm_274_lone_sequence_exhausts_the_cache() -> None:
    """It ended in an assert, or in a deadlock: refused at submission instead, else it finishes."""
    simulator = simulate(num_blocks=4, block_size=4)
    with pytest.raises(RequestError, match="cache"):
        simulator.submit(request(1, [1] * 6, 8))
    simulator.submit(request(2, [1] * 6, 7))  # 12 tokens in 3 blocks; the last needs no place
    simulator.drain()
    assert simulator.records[2, 0].ended is FinishReason.LENGTH


def test_minivllm_6_sequence_lost_on_preemption() -> None:
    """A loop without end, and a sequence that nobody knew any more."""
    simulator = simulate(num_blocks=11, max_num_seqs=4)
    for key in range(1, 7):
        simulator.submit(request(key, [key] * 10, 12))
    simulator.drain()
    assert simulator.total().preemptions > 0
    assert [r.ended for r in simulator.records.values()] == [FinishReason.LENGTH] * 6


def test_vllm_23347_planned_in_this_step_and_preempted() -> None:
    """A request that already had its row in the step was preempted for a later one."""
    waited = 0
    for length in range(5, 13):
        simulator = simulate(num_blocks=9, max_num_seqs=2, max_num_batched_tokens=12)
        simulator.submit(request(1, [1] * 12, 1, client="a"))
        simulator.submit(request(2, [2] * length, 20, client="a"))
        simulator.submit(request(3, [3] * 9, 20, client="b"))  # goes first: b has had less
        drawn: set[int] = set()
        while simulator.open:
            simulator.launch()  # looks at each row of the plan: running, and of today's epoch
            drawn = {row.key for row in simulator.in_flight[-1][0].rows}
            running = {r.key: r for r in simulator.scheduler.state.running}
            if drawn == {2} and 3 in running:
                waited += 1  # the last admitted is planned, and no block is left for the other
                assert running[3].admission < running[2].admission
                assert simulator.pool.num_free == 0
            simulator.apply()
        simulator._check_empty()
    assert waited > 0


def test_vllm_39734_request_larger_than_the_cache_blocks_the_queue() -> None:
    """It waited for ever, and everybody behind it: an error before any state instead."""
    simulator = simulate(num_blocks=4, block_size=4)
    with pytest.raises(RequestError) as caught:
        simulator.submit(request(1, [1] * 20, 4))
    assert caught.value.field == "max_tokens"
    assert not simulator.scheduler.has_requests
    simulator.submit(request(2, [1], 2))
    simulator.drain()


def test_nano_vllm_decodes_wait_for_a_chunked_prompt() -> None:
    """While a long prompt was computed in chunks, nobody else's next token was."""
    simulator = simulate(max_num_batched_tokens=6)
    simulator.submit(request(1, [1], 12))
    simulator.turn()
    simulator.submit(request(2, [2] * 30, 1))
    chunks = 0
    while (2, 0) in simulator.open:
        before = len(simulator.records[1, 0].tokens)
        simulator.turn()
        chunks += 1
        assert len(simulator.records[1, 0].tokens) == before + 1
    assert chunks == 6
    simulator.drain()


def test_mini_sglang_over_long_prompt_leaves_its_client_waiting() -> None:
    """It was logged and dropped. Here the refusal reaches the client, and names both numbers."""

    async def test() -> None:
        async with serving(engine={"max_model_len": 64}) as running:
            answer = await generate(running, ask([300] * 60, max_tokens=10))
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
            assert "60" in answer.details and "64" in answer.details
            assert (await generate(running, ask([300] * 20))).code is grpc.StatusCode.OK

    run(test)


def test_gllm_jitter_in_admission() -> None:
    """Random jitter made ranks decide differently: no clock and no chance enters a decision."""
    for seed in (31, 32, 33):
        first, second = (run_episode(seed, turns=80, log=True) for _ in range(2))
        assert first.log == second.log
    folder = Path(str(engine.__file__)).parent
    for file in (folder / "request.py", *(folder / "scheduling").glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        imported |= {
            str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
        }
        # (an error's id is drawn, with `secrets`; it decides nothing)
        assert not imported & {"time", "random", "uuid", "datetime", "os", "numpy"}


# ================================================================ overlap and graphs


class ToyRunner:
    """The toy device as the loop's runner: results are known when somebody waits for them."""

    def __init__(self, device: ToyDevice) -> None:
        self._device = device

    def execute(self, plan: StepPlan) -> "ToyRunner":
        self._last = StepResult(self._device.execute(plan))
        result = ToyRunner(self._device)
        result._last = self._last
        return result

    def wait(self) -> StepResult:
        return self._last

    def reset(self) -> None:
        """Nothing is kept between steps."""

    def is_fatal(self, error: Exception) -> bool:
        return isinstance(error, AssertionError)


@pytest.mark.parametrize("when", range(8))
def test_mini_sglang_111_abort_of_a_request_in_the_step_in_flight(when: int) -> None:
    """Its blocks were freed at once, and again when the step came back."""
    simulator = simulate(num_blocks=12, depth=1)
    core = EngineCore(simulator.scheduler, ToyRunner(simulator.device), overlap=True)
    for key in (1, 2, 3):
        simulator.submit(request(key, [key] * 7, 9))
    for turn in range(60):
        if turn == when:
            (aborted,) = simulator.scheduler.state.by_key[2]
            held, free = list(aborted.block_table), simulator.pool.num_free
            assert turn == 0 or (aborted.in_flight and held)
            simulator.abort(2)
            assert aborted.block_table == held and simulator.pool.num_free == free
        simulator._hear(core.step())
        known = list(simulator.scheduler.unfinished())
        known += [r for flight in simulator.scheduler.completion.in_flight for r in flight.requests]
        simulator.pool.check({id(r): r.block_table for r in known}.values())
    assert not simulator.open
    assert simulator.pool.num_free == simulator.pool.num_usable


def test_smg_2426_stale_or_repeated_abort() -> None:
    """The second terminal event broke the tables: the first one wins, the rest are nothing."""
    simulator = simulate(depth=1)
    simulator.abort(99)
    simulator.finish(99, 0, 0)
    for key in (1, 2):
        simulator.submit(request(key, [key] * 5, 3))
    for _ in range(3):
        simulator.turn()
    for _ in range(3):
        simulator.abort(1)
        simulator.scheduler.finish(1, 0, 0)
    simulator.drain()
    for key in (1, 2):
        simulator.abort(key)
        simulator.scheduler.finish(key, 0, 0)
    assert simulator.scheduler.drain_outputs() == []
    assert simulator.records[1, 0].ended is FinishReason.CANCELLED
    assert simulator.records[2, 0].ended is FinishReason.LENGTH
