"""Planning under random traffic: nothing leaks, nothing hangs, nobody reads another's cache.

The simulator checks the pool, the slots, each plan and every token after every turn (its docstring
says what); here it is driven three ways, and asked for what holds over whole runs: equal input
gives equal plans, a lone request always finishes, and nobody waits for ever.
"""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from support.simulation import Shape
from support.simulator import Simulator
from support.toy_device import EOS
from support.traffic import random_shape, run_episode, run_steps, windowed_shape

from quire.engine.errors import RequestError
from quire.engine.request import FinishReason, GenerationRequest, SamplingParams
from quire.engine.scheduling.completion import Completion
from quire.engine.scheduling.draft import Draft
from quire.engine.scheduling.request import Status
from quire.engine.scheduling.scheduler import Scheduler

STEPS = 10_000


def request(
    key: int, prompt: tuple[int, ...], max_tokens: int, **more: object
) -> GenerationRequest:
    """One that runs to its max_tokens."""
    return GenerationRequest(key, prompt, SamplingParams(max_tokens=max_tokens), **more)  # type: ignore[arg-type]


def test_random_traffic_neither_leaks_nor_hangs_nor_corrupts() -> None:
    tally, episodes = run_steps(STEPS)
    print(f"{episodes} episodes: {tally}")
    assert tally.steps >= STEPS
    for name in (
        "preemptions",
        "hits",
        "partial_copies",
        "evictions",
        "aborts_in_flight",
        "duplicates",
    ):
        assert getattr(tally, name) >= 100, f"too few {name}: {tally}"
    for name in ("forks", "resumed", "finishes", "stale_epochs", "discarded", "refused"):
        assert getattr(tally, name) >= 50, f"too few {name}: {tally}"
    assert tally.failures >= 20


@pytest.mark.parametrize("steps", [400, pytest.param(STEPS, marks=pytest.mark.long)])
def test_random_traffic_over_windows_reads_only_its_own(steps: int) -> None:
    """Blocks that windows have passed go to others; where layers differ, two pools run out."""
    tally, _ = run_steps(steps, shape_of=windowed_shape)
    assert tally.hits >= steps // 100
    if steps == STEPS:
        for name in (
            "preemptions",
            "partial_copies",
            "evictions",
            "aborts_in_flight",
            "duplicates",
        ):
            assert getattr(tally, name) >= 100, f"too few {name}: {tally}"


def test_equal_submissions_and_results_give_equal_plans() -> None:
    """The pool's hash seed differs from run to run, and with it all order of hashes and sets."""
    for seed in range(1000, 1012):
        first, second = (run_episode(seed, turns=120, log=True) for _ in range(2))
        assert first.log == second.log
        assert first.log


def plan_by_rows(self: Scheduler, draft: Draft, *, decode: bool) -> None:
    """Scheduler._plan_running without a way of its own for rows that only go on."""
    for request in tuple(self.state.running):
        remaining = request.remaining
        if draft.budget == 0 or request.status is not Status.RUNNING:
            continue
        if remaining <= 0 or (remaining == 1) != decode or request.slot in draft.planned:
            continue
        count = min(remaining, draft.budget)
        if self._secure_blocks(request, count, draft):
            self._add_row(request, count, draft)


@pytest.mark.parametrize("shape_of", [random_shape, windowed_shape])
def test_rows_that_only_go_on_are_as_if_nothing_were_known_of_them(
    shape_of: Callable[[Random], Shape], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned and taken in by the short ways and by the long ones: the same plans and counts."""
    seeds = range(2000, 2003)
    short = [run_episode(seed, turns=50, log=True, shape_of=shape_of) for seed in seeds]
    monkeypatch.setattr(Scheduler, "_plan_running", plan_by_rows)
    monkeypatch.setattr(Completion, "_apply_next", lambda *_: False)
    for seed, one in zip(seeds, short, strict=True):
        other = run_episode(seed, turns=50, log=True, shape_of=shape_of)
        assert one.log == other.log
        assert one.scheduler.counters == other.scheduler.counters


class Engine(RuleBasedStateMachine):
    """Any order of calls, each step of the loop apart: planning ahead, applying late, failing."""

    @initialize(seed=st.integers(0, 1 << 20), two_phase=st.booleans(), caching=st.booleans())
    def build(self, seed: int, two_phase: bool, caching: bool) -> None:
        shape = random_shape(Random(seed))
        self.simulator = Simulator(
            Shape(
                num_blocks=shape.num_blocks,
                block_size=shape.block_size,
                max_num_seqs=shape.max_num_seqs,
                max_num_batched_tokens=shape.max_num_batched_tokens,
                max_model_len=shape.max_model_len,
                two_phase=two_phase,
                caching=caching,
            )
        )
        self.key = 0

    @rule(
        prompt=st.lists(st.integers(1, 2), min_size=0, max_size=40),
        max_tokens=st.integers(0, 24),
        n=st.sampled_from((1, 1, 2, 3)),
        priority=st.integers(0, 2),
        salt=st.sampled_from((b"", b"s")),
        ignore_eos=st.booleans(),
    )
    def submit(
        self,
        prompt: list[int],
        max_tokens: int,
        n: int,
        priority: int,
        salt: bytes,
        ignore_eos: bool,
    ) -> None:
        self.key += 1
        params = SamplingParams(max_tokens=max_tokens, eos_token_ids=(EOS,), ignore_eos=ignore_eos)
        spec = GenerationRequest(self.key, tuple(prompt), params, n, priority, salt)
        try:
            self.simulator.scheduler.check(spec)
        except RequestError:
            with pytest.raises(RequestError):
                self.simulator.scheduler.submit(spec)
            return
        self.simulator.submit(spec)

    @rule()
    def launch(self) -> None:
        if len(self.simulator.in_flight) < 3:
            self.simulator.launch()

    @precondition(lambda self: self.simulator.in_flight)
    @rule()
    def apply(self) -> None:
        self.simulator.apply()

    @rule(times=st.integers(1, 8))
    def turn(self, times: int) -> None:
        for _ in range(times):
            self.simulator.turn()

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.simulator.abort(data.draw(st.integers(1, self.key + 1)))

    @precondition(lambda self: self.simulator.open)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        key, index = data.draw(st.sampled_from(sorted(self.simulator.open)))
        tokens = len(self.simulator.open[key, index].tokens)
        if tokens:
            self.simulator.finish(key, index, data.draw(st.integers(0, tokens)))

    @rule()
    def flush(self) -> None:
        """At any moment, steps in flight included; the next turn checks the pool."""
        pool, cached = self.simulator.pool, self.simulator.pool.num_cached
        assert (pool.forget_free(), pool.num_cached) == (cached, 0)
        pool.prefix_cache.check()

    @rule(rows=st.integers(0, 4))
    def fail(self, rows: int) -> None:
        self.simulator.fail(rows)

    def teardown(self) -> None:
        if hasattr(self, "simulator"):
            self.simulator.drain(self.simulator.work_bound() + 3)


TestEngine = Engine.TestCase
TestEngine.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    block_size=st.integers(1, 5),
    usable=st.integers(1, 9),
    prompt=st.integers(1, 24),
    max_tokens=st.integers(1, 24),
    budget=st.integers(1, 12),
    depth=st.integers(0, 2),
    two_phase=st.booleans(),
    caching=st.booleans(),
)
def test_theorem_a_lone_request_that_is_admitted_finishes(
    block_size: int,
    usable: int,
    prompt: int,
    max_tokens: int,
    budget: int,
    depth: int,
    two_phase: bool,
    caching: bool,
) -> None:
    """Refused exactly if it cannot fit; otherwise it ends, never preempted, in the fewest steps."""
    simulator = Simulator(
        Shape(
            num_blocks=usable + 1,
            block_size=block_size,
            max_num_seqs=2,
            max_num_batched_tokens=budget,
            max_model_len=48,
            two_phase=two_phase,
            caching=caching,
            depth=depth,
        )
    )
    spec = request(1, (1,) * prompt, max_tokens)
    # the last token of all is sampled, and never computed
    fits = prompt + max_tokens <= 48 and prompt + max_tokens - 1 <= usable * block_size
    if not fits:
        with pytest.raises(RequestError):
            simulator.submit(spec)
        return
    simulator.submit(spec)
    chunks = -(-prompt // budget)
    simulator.drain(bound=(chunks + max_tokens) * (depth + 1) + depth)
    assert simulator.records[1, 0].ended is FinishReason.LENGTH
    assert simulator.total().preemptions == 0
    assert simulator.tally.steps == chunks + max_tokens - 1


@pytest.mark.parametrize("two_phase", (False, True))
@pytest.mark.parametrize("seed", range(6))
def test_nobody_starves_behind_endless_traffic_of_higher_priority(
    seed: int, two_phase: bool
) -> None:
    rng = Random(seed)
    simulator = Simulator(
        Shape(num_blocks=13, block_size=4, max_num_seqs=4, max_model_len=40, two_phase=two_phase)
    )
    simulator.submit(request(1, (1, 2) * 5, 12, priority=0))
    key, turns = 1, 0
    while simulator.records[1, 0].ended is None:
        while simulator.scheduler.num_waiting < 6:
            key += 1
            prompt = tuple(rng.randrange(1, 5) for _ in range(rng.randint(1, 20)))
            simulator.submit(request(key, prompt, rng.randint(1, 20), priority=rng.randint(1, 2)))
        simulator.turn()
        turns += 1
        assert turns < 600, "the low priority request starves"
    simulator.drain(simulator.work_bound())


@pytest.mark.parametrize("seed", range(8))
def test_every_request_ends_within_a_bound_of_steps_under_endless_traffic(seed: int) -> None:
    """Each admission serves the first in rank or, every few, the longest waiting; so with a queue
    kept at Q requests of at most L tokens nobody's life exceeds a multiple of Q * L steps."""
    rng = Random(seed)
    shape = Shape(
        num_blocks=rng.choice((11, 14, 20)),
        block_size=4,
        max_num_seqs=rng.choice((2, 4, 8)),
        max_num_batched_tokens=24,
        max_model_len=40,
        two_phase=seed % 4 == 3,
    )
    simulator = Simulator(shape)
    born: dict[int, int] = {}
    queue, length = 6, 40
    for turn in range(1200):  # time for one of the first 480 turns to wait too long
        while simulator.scheduler.num_waiting < queue:
            key = len(born) + 1
            born[key] = turn
            prompt = tuple(rng.randrange(1, 4) for _ in range(rng.randint(1, 20)))
            client = rng.choice(("a", "b", "c"))
            spec = request(
                key, prompt, rng.randint(1, 20), priority=rng.randint(0, 2), client=client
            )
            simulator.submit(spec)
        simulator.turn()
        oldest = min(born[key] for key, _ in simulator.open)
        assert turn - oldest < 3 * queue * length, "a request does not come to its end"
    simulator.drain(simulator.work_bound())
