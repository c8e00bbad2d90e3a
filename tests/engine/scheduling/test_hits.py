"""What a hit covers: whole blocks shared, and the beginning of one more block copied.

The simulator's device tells each token's whole prefix apart, so a copy of too much, of another
salt's block or of one that was given out meanwhile shows as a corrupt context.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from random import Random

import pytest
from support.simulation import Shape
from support.simulator import Simulator
from support.toy_device import Oracle

from quire.engine.loop.core import EngineCore
from quire.engine.request import FinishReason, GenerationRequest, SamplingParams
from quire.engine.scheduling.block_pool import BlockPool
from quire.engine.scheduling.plan import Masks, StepPlan, StepResult
from quire.engine.scheduling.scheduler import Scheduler

TEXT = (1, 2, 1, 1, 2, 2, 1, 2, 1, 2, 2, 2, 1, 1, 1, 2)


def spec(
    key: int, prompt: Sequence[int], max_tokens: int = 1, n: int = 1, salt: bytes = b""
) -> GenerationRequest:
    params = SamplingParams(max_tokens=max_tokens)
    return GenerationRequest(key, tuple(prompt), params, n=n, cache_salt=salt)


def build(**shape: object) -> Simulator:
    return Simulator(replace(Shape(depth=0, max_num_batched_tokens=64), **shape))  # type: ignore[arg-type]


def served(simulator: Simulator, *specs: GenerationRequest) -> None:
    for one in specs:
        simulator.submit(one)
        simulator.drain()


def launched(simulator: Simulator, *specs: GenerationRequest) -> StepPlan:
    """The plan that admits these."""
    for one in specs:
        simulator.submit(one)
    simulator.launch()
    return simulator.in_flight[-1][0]


def starts(plan: StepPlan) -> list[int]:
    return [row.start for row in plan.rows]


def num_equal(one: Sequence[int], other: Sequence[int]) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


# ------------------------------------------------------------ how far it goes


@pytest.mark.parametrize("size", (1, 2, 3, 4, 7))
def test_a_hit_is_the_longest_known_beginning_to_the_token_and_leaves_one(size: int) -> None:
    """Of all that requests of the same salt have computed, prompts and answers alike."""
    rng = Random(size)
    simulator = build(num_blocks=300 + 700 // size, block_size=size, max_model_len=48)
    past: list[tuple[bytes, Sequence[int]]] = []
    inner = 0
    for key in range(1, 90):
        salt = rng.choice((b"", b"a"))
        prompt = [rng.randint(1, 2) for _ in range(rng.randint(1, 12))]
        if past and rng.random() < 0.6:
            known = rng.choice(past)[1]
            prompt = [*known[: rng.randint(1, len(known))], *prompt[: rng.randint(1, 5)]][:36]
        one = spec(key, prompt, rng.randint(1, 8), salt=salt)
        longest = max([num_equal(tokens, prompt) for of, tokens in past if of == salt], default=0)
        counters = simulator.scheduler.counters
        before = counters.prefix_hit
        served(simulator, one)
        hit = counters.prefix_hit - before
        assert hit == min(longest, len(prompt) - 1)
        inner += hit % size > 0
        computed = len(prompt) + one.sampling.max_tokens - 1  # the last output never is
        past.append((salt, Oracle(one, 0, simulator.shape.vocab).token_ids[:computed]))
    assert simulator.pool.evictions == 0
    assert inner >= 15 or size == 1


@pytest.mark.parametrize("salt", (b"", b"s"))
def test_the_next_turn_of_a_conversation_computes_what_is_new_alone(salt: bytes) -> None:
    simulator = build()
    first = spec(1, TEXT[:10], 5, salt=salt)
    served(simulator, first)
    known = Oracle(first, 0, simulator.shape.vocab).token_ids
    plan = launched(simulator, spec(2, (*known, 1, 2), salt=salt))
    assert starts(plan) == [14], "the last output was said and not computed"
    assert len(plan.copies) == 1 and plan.rows[0].num_tokens == 3
    simulator.apply()
    simulator.drain()


def test_the_same_prompt_again_is_a_row_of_one_token() -> None:
    """A decode row, that is, though it is the request's first."""
    simulator = build()
    served(simulator, spec(1, TEXT[:8]))
    plan = launched(simulator, spec(2, TEXT[:8]), spec(3, TEXT[:8]))
    assert starts(plan) == [7, 7] and plan.num_decode_rows == 2
    assert len({source for source, _ in plan.copies}) == 1, "both copy from one block"
    assert simulator.pool.num_shared == 1, "the source is held no longer than planning takes"
    simulator.apply()
    simulator.drain()


def test_a_prompt_that_nobody_has_begun_is_hashed_while_the_device_computes_it() -> None:
    scheduler = Scheduler(
        BlockPool(40, 4), max_num_seqs=2, max_num_batched_tokens=64, max_model_len=64
    )
    device = _Hashed(scheduler)
    core = EngineCore(scheduler, device, overlap=False)
    for _ in "cold", "hit":
        core.submit(spec(1, range(1, 22)))
        core.step()
    assert device.hashed == [1, 5, 5, 5]


class _Hashed:
    """A device, and the only request's hashes when a step is launched, and when it is awaited."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.hashed: list[int] = []

    def _look(self) -> None:
        (request,) = self._scheduler.unfinished()
        self.hashed.append(len(request.block_hashes))

    def execute(self, _plan: StepPlan) -> "_Hashed":
        self._look()
        return self

    def wait(self) -> StepResult:
        self._look()
        return StepResult([[7]])

    def sample(self, _masks: Masks) -> "_Hashed":
        return self

    def reset(self) -> None:
        """There is nothing to forget."""

    def is_fatal(self, _error: Exception) -> bool:
        return True


def test_another_salt_copies_nothing() -> None:
    simulator = build()
    served(simulator, spec(1, TEXT[:6], salt=b"a"), spec(2, TEXT[:6], salt=b"b"))
    assert simulator.tally.partial_copies == simulator.tally.hits == 0


def test_siblings_fork_from_a_leader_that_has_copied() -> None:
    simulator = build(num_blocks=40)
    served(simulator, spec(1, TEXT[:7], 3))
    plan = launched(simulator, spec(2, TEXT[:7], 6, n=3))
    assert starts(plan) == [6] and len(plan.copies) == 1
    simulator.apply()
    simulator.launch()
    plan = simulator.in_flight[-1][0]
    assert len(plan.copies) == 2 and starts(plan)[1:] == [6, 6]
    simulator.apply()
    simulator.drain()


def test_without_caching_nothing_is_copied() -> None:
    simulator = build(caching=False)
    served(simulator, spec(1, TEXT[:6]), spec(2, TEXT[:6]))
    assert simulator.tally.partial_copies == 0


# ------------------------------------------------------------ blocks


def test_a_source_is_given_to_nobody_by_the_plan_that_copies_from_it() -> None:
    """The second request would be given it: the free list has come to its end."""
    simulator = build(num_blocks=6)
    served(simulator, spec(1, TEXT[:6]))  # a full block, and a tail of two tokens
    other = (2, 2, 2, 1, 1, 2, 2, 1, 2)
    plan = launched(simulator, spec(2, (*TEXT[:6], 1)), spec(3, other))
    assert [row.key for row in plan.rows] == [2] and starts(plan) == [6]
    simulator.apply()
    simulator.drain()
    assert simulator.records[3, 0].ended is FinishReason.LENGTH


def test_a_pool_too_small_for_a_source_beside_the_request_computes_instead() -> None:
    """Or a request that fits alone would wait for ever."""
    simulator = build(num_blocks=3)
    served(simulator, spec(1, TEXT[:6]))
    plan = launched(simulator, spec(2, (*TEXT[:6], 1)))
    assert starts(plan) == [4] and not plan.copies
    simulator.apply()
    simulator.drain()


def test_a_copied_from_block_counts_as_used_last() -> None:
    simulator = build(num_blocks=8)
    served(simulator, spec(1, TEXT[:3]), spec(2, (2, 2, 2)), spec(3, TEXT[:4]))
    served(simulator, spec(4, (3,) * 20, 1), spec(5, TEXT[:4]))
    assert simulator.tally.partial_copies == 2


def test_tails_that_say_the_same_are_kept_once() -> None:
    simulator = build()
    served(simulator, *(spec(key, TEXT[:7]) for key in range(1, 6)))
    assert simulator.pool.num_cached == 2


# ------------------------------------------------------------ what may be copied


def test_what_a_fork_copied_is_known_only_once_its_step_was_applied() -> None:
    """A step in flight may fail, and then nobody knows what it has written."""
    simulator = build()
    simulator.submit(spec(1, TEXT[:7], 4, n=2))
    simulator.turn()
    simulator.launch()
    ((_, target),) = simulator.in_flight[-1][0].copies
    simulator.finish(1, 1, kept=0)
    assert target not in simulator.pool.prefix_cache
    simulator.fail(rows=0)
    served(simulator, spec(2, TEXT[:7], 4))


def test_what_a_hit_copied_is_known_by_its_source_until_its_step_was_applied() -> None:
    simulator = build()
    served(simulator, spec(1, TEXT[:7]))
    plan = launched(simulator, spec(2, (*TEXT[:7], 2, 2), 4))
    ((source, target),) = plan.copies
    simulator.abort(2)
    cache = simulator.pool.prefix_cache
    assert source in cache and target not in cache
    simulator.fail(rows=0)
    assert target not in cache
    served(simulator, spec(3, (*TEXT[:7], 2, 2), 4))


def test_an_aborted_requests_applied_tokens_can_be_copied() -> None:
    simulator = build(depth=1, max_num_batched_tokens=6)
    simulator.submit(spec(1, TEXT))
    simulator.turn()
    simulator.turn()  # six are applied, six in flight
    simulator.abort(1)
    simulator.drain()
    plan = launched(simulator, spec(2, TEXT))
    assert starts(plan) == [6]
    simulator.apply()
    simulator.drain()


def test_a_request_that_failed_leaves_no_tail() -> None:
    simulator = build()
    simulator.submit(spec(1, TEXT[:6], 8))
    simulator.turn()
    simulator.fail(rows=1)
    assert simulator.pool.num_cached == 1


# ------------------------------------------------------------ the index


def test_the_most_alike_block_is_found_among_thousands_without_looking_at_them() -> None:
    """All behind one prefix, as behind a system prompt that everybody has."""
    rng = Random(1)
    pool, size = BlockPool(5000, 16), 16
    cache = pool.prefix_cache
    kept = []
    for block in pool.allocate(4999):
        tokens = [rng.randrange(3) for _ in range(rng.randint(1, size))]
        if len(tokens) < size:
            cache.register_tail(block, [], b"", tokens, len(tokens))
        else:
            hashes: list[bytes] = []
            cache.extend_hashes(hashes, b"", tokens, 1)
            cache.register([block], hashes, b"", tokens, 0)
        if block in cache:
            kept.append((block, tokens))
    assert len(kept) > 1000
    cache.check()
    looked = _Counted(cache._children[cache.root_hash(b"")])
    cache._children[cache.root_hash(b"")] = looked  # type: ignore[assignment]
    for _ in range(200):
        wanted = [rng.randrange(3) for _ in range(rng.randint(2, 20))]
        match = cache.match_partial([], b"", wanted, 0)
        best = max(num_equal(tokens, wanted[:-1][:size]) for _, tokens in kept)
        assert (match.num_tokens if match else 0) == best
        if match is not None:
            assert dict(kept)[match.block][:best] == wanted[:best]
    assert looked.count < 200 * 20


class _Counted(list[tuple[bytes, int]]):
    """A list that counts what is read of it."""

    count = 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        found = super().__getitem__(index)
        self.count += len(found) if isinstance(index, slice) else 1
        return found

    def __iter__(self):  # type: ignore[no-untyped-def]
        self.count += len(self)
        return super().__iter__()


def test_forgetting_a_tail_takes_it_out_of_the_index() -> None:
    pool = BlockPool(3, 4)
    table = pool.allocate(1)
    pool.prefix_cache.register_tail(table[0], [], b"", [1, 2], 2)
    pool.release(table)
    assert pool.prefix_cache.match_partial([], b"", [1, 2, 3], 0) == (table[0], 2)
    pool.release(pool.allocate(2))
    pool.check([])
    assert pool.evictions == 1
    assert pool.prefix_cache.match_partial([], b"", [1, 2, 3], 0) is None
