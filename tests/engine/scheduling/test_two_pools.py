"""Models whose layers differ: blocks that every window has passed return to their pool alone, hits
end where both caches allow, and requests wait for whichever pool has nothing left."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from support.small_engine import FAMILIES, Setup, build_core, load_model, run
from support.windows import BLOCK, GREEDY, PROMPT, WINDOW, forget

from quire.engine.loop.core import EngineCore
from quire.engine.loop.kv_watch import KvWatch
from quire.engine.loop.stats import snapshot
from quire.engine.model.base import CausalModel
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.scheduling.block_pool import BlockPool
from quire.engine.scheduling.kv_events import REMOVED, SNAPSHOT, STORED, KvEvents
from quire.engine.scheduling.two_pools import TwoPoolScheduler


@cache
def model() -> tuple[CausalModel, Any]:
    config = FAMILIES["qwen2, both"]
    assert (config.sliding_window, config.window_layers) == (WINDOW, 2)
    return load_model(config, seed=3)


def pools_of(core: EngineCore) -> tuple[BlockPool, BlockPool]:
    scheduler = core.scheduler
    assert isinstance(scheduler, TwoPoolScheduler)
    return scheduler.pool, scheduler.window_pool


def in_use(core: EngineCore) -> tuple[int, int]:
    full, windowed = pools_of(core)
    return full.num_usable - full.num_free, windowed.num_usable - windowed.num_free


def check(core: EngineCore) -> None:
    """Every reference of either pool is a table's."""
    flights = core.scheduler.completion.in_flight
    known = [*core.scheduler.unfinished(), *(r for flight in flights for r in flight.requests)]
    requests = {id(request): request for request in known}.values()
    full, windowed = pools_of(core)
    full.check([request.block_table for request in requests])
    windowed.check([request.window_table for request in requests], gaps=True)


def test_blocks_that_windows_passed_return_and_full_layers_keep_theirs() -> None:
    core = build_core(*model(), Setup(max_num_batched_tokens=8, caching=True))
    core.scheduler.submit(GenerationRequest(1, PROMPT, GREEDY))
    held = []
    while core.scheduler.has_requests:
        core.step()
        held.append(in_use(core))
        check(core)
    full, windowed = zip(*held, strict=True)
    # A prompt's blocks at once where all is seen; of a window those of the steps that came.
    assert full[0] == 10 and full[-2] == 20 and list(full[:-1]) == sorted(full[:-1])
    assert windowed[0] == 2 and max(windowed) <= 5
    # Of 80 tokens those of a window that lies across four blocks, and the one that is begun.
    assert max(windowed[10:-1]) <= 4
    assert held[-1] == (0, 0)


def test_a_prompt_longer_than_the_cache_of_windows_is_served() -> None:
    """In the fewest blocks that a lone request can do with."""
    wide = run(build_core(*model(), Setup()), [GenerationRequest(1, PROMPT, GREEDY)])
    for chunk in (1, 5, 8):
        setup = Setup(max_num_batched_tokens=chunk, caching=True, overlap=True, window_share=0)
        core = build_core(*model(), setup)
        _, windowed = pools_of(core)
        assert windowed.num_usable <= 7 < 10
        narrow = run(core, [GenerationRequest(1, PROMPT, GREEDY)])
        assert narrow[1, 0].token_ids == wide[1, 0].token_ids
        small = BlockPool(windowed.num_usable, BLOCK)  # one less, the null block included
        options = {"max_num_seqs": 1, "max_num_batched_tokens": chunk, "max_model_len": 128}
        with pytest.raises(ValueError, match="blocks of windows: at least"):
            TwoPoolScheduler(pools_of(core)[0], small, **options, window=WINDOW)


def chains(core: EngineCore) -> Iterator[tuple[BlockPool, list[int]]]:
    """Of the prompt, in each pool."""
    for pool in pools_of(core):
        hashes: list[bytes] = []
        pool.prefix_cache.extend_hashes(hashes, b"", PROMPT, 10)
        found = pool.prefix_cache.match(hashes, PROMPT)
        assert len(found) == 10
        yield pool, found


@pytest.mark.parametrize(
    ("full", "windowed", "hit"),
    [
        ((), (), 39),  # nothing is missing: nine blocks, and a copy of the tenth
        ((), range(6), 39),  # of windows those of the last ten tokens suffice
        ((), range(7), 0),  # one too few for any place
        ((), (8,), 32),  # up to the eighth, which windows reach from the sixth on
        ((), (9,), 36),  # and there is nothing to copy from
        ((5,), (), 20),
        ((9,), (), 36),
        ((5,), (3,), 12),
        ((0,), (), 0),
    ],
)
def test_a_hit_ends_where_both_caches_allow(full: Any, windowed: Any, hit: int) -> None:
    core = build_core(*model(), Setup(caching=True, window_share=1))
    brief = replace(GREEDY, max_tokens=9)
    first = run(core, [GenerationRequest(1, PROMPT, brief)])[1, 0]
    for (pool, found), missing in zip(chains(core), (full, windowed), strict=True):
        for place in missing:
            forget(pool, found[place])
    again = run(core, [GenerationRequest(2, PROMPT, brief)])[2, 0]
    assert again.token_ids == first.token_ids
    assert again.cached_tokens == hit


def requests(count: int, seed: int, most: int = 20) -> list[GenerationRequest]:
    """Prompts of which some begin alike, and some have siblings."""
    rng = random.Random(seed)
    made = []
    for key in range(count):
        begin = PROMPT[: rng.choice((0, 9, 17, 30))]
        end = tuple(rng.randrange(1, 380) for _ in range(rng.randrange(1, 25)))
        heat = {"temperature": 0.8, "seed": key} if key % 3 else {}
        params = SamplingParams(max_tokens=rng.randrange(1, most), **heat)  # type: ignore[arg-type]
        made.append(GenerationRequest(key, begin + end, params, n=rng.choice((1, 1, 3))))
    return made


@cache
def expected(seed: int) -> dict[tuple[int, int], list[int]]:
    """Of each request alone."""
    alone = {}
    for spec in requests(10, seed):
        outcomes = run(build_core(*model(), Setup(max_num_seqs=3)), [spec])
        alone.update({place: outcome.token_ids for place, outcome in outcomes.items()})
    return alone


@pytest.mark.parametrize(("share", "chunk", "overlap"), ((0.0, 6, True), (0.12, 9, False)))
def test_where_windows_have_few_blocks_others_wait_or_begin_again(
    share: float, chunk: int, overlap: bool
) -> None:
    setup = Setup(8, chunk, caching=True, overlap=overlap, window_share=share)
    core = build_core(*model(), setup)
    for turn in range(2):
        outcomes = run(core, requests(10, seed=1))
        assert {place: o.token_ids for place, o in outcomes.items()} == expected(1)
        assert core.scheduler.counters.preemptions > turn
    assert pools_of(core)[1].evictions > 0
    assert core.scheduler.counters.prefix_hit > 0


def held_by_both(core: EngineCore) -> Counter[bytes]:
    full, windowed = (Counter(pool.prefix_cache.hashes()) for pool in pools_of(core))
    return full & windowed


def test_events_tell_what_both_caches_hold() -> None:
    setup = Setup(4, 9, num_blocks=40, caching=True, overlap=True, window_share=0.4)
    core = build_core(*model(), setup)
    run(core, requests(3, seed=7))
    watch = KvWatch(core.scheduler.known)
    watch.begin()
    told: Counter[bytes] = Counter()

    def follow(batches: tuple[KvEvents, ...]) -> None:
        for batch in batches:
            if batch.kind == SNAPSHOT:
                told.clear()
            for event in batch.events:
                assert event.kind in (STORED, REMOVED)
                told[event.block_hash] += 1 if event.kind == STORED else -1
        assert told == held_by_both(core)

    follow(watch.take())
    assert told
    waiting, removed = requests(12, seed=8, most=9), 0
    while waiting or core.scheduler.has_requests:
        if waiting:
            core.scheduler.submit(waiting.pop())
        core.step()
        check(core)
        batches = watch.take()
        removed += sum(event.kind == REMOVED for batch in batches for event in batch.events)
        follow(batches)
    assert removed > 10
    watch.begin()
    follow(watch.take())
    assert sum(pool.forget_free() for pool in core.scheduler.pools) > 0
    assert not held_by_both(core)
    assert [batch.kind for batch in watch.take()] and not watch.take()


def test_statistics_count_both_pools() -> None:
    core = build_core(*model(), Setup(2, 9, num_blocks=40, caching=True, window_share=0.4))
    for spec in requests(4, seed=2):
        core.scheduler.submit(spec)
    for _ in range(9):
        core.step()
        stats, pools = snapshot(core.scheduler), pools_of(core)
        assert stats.blocks_total == 39 + int(0.4 * 39)
        assert stats.blocks_free == stats.blocks_total - stats.blocks_in_use
        assert stats.blocks_in_use == sum(in_use(core))
        states = b"".join(pool.block_map() for pool in pools)
        assert len(states) == stats.blocks_total
        assert states.count(1) == stats.blocks_cached
    assert in_use(core)[0] > in_use(core)[1] > 0


def test_whatever_comes_and_goes_no_block_is_lost() -> None:
    """Calls that are given up, and steps that fail."""
    rng = random.Random(4)
    setup = Setup(4, 7, num_blocks=30, caching=True, overlap=True, window_share=0.4)
    core = build_core(*model(), setup)
    waiting = requests(14, seed=5)
    while waiting or core.scheduler.has_requests:
        if waiting and rng.random() < 0.5:
            core.scheduler.submit(waiting.pop())
        core.step()
        if rng.random() < 0.1:
            core.scheduler.abort(rng.randrange(14))
        if rng.random() < 0.03 and core.scheduler.num_in_flight:
            core._in_flight.clear()
            core.scheduler.fail("00000000")
            core.runner.reset()
        check(core)
    assert in_use(core) == (0, 0)


@torch.inference_mode()
def test_a_cache_of_fp8_keeps_its_two_kinds_apart() -> None:
    setup = Setup(4, 9, caching=True, cache_dtype=torch.float8_e4m3fn, window_share=0.2)
    core = build_core(*load_model(replace(FAMILIES["fp8 cache, both"], num_layers=3), 3), setup)
    kv = core.runner._kv  # type: ignore[attr-defined]
    assert kv.window is not None and kv.window.k.dtype == kv.k.dtype == torch.float8_e4m3fn
    assert (len(kv.k), len(kv.window.k)) == (1, 2)
    cold, hot = (run(core, [GenerationRequest(1, PROMPT, GREEDY)])[1, 0] for _ in range(2))
    assert hot.token_ids == cold.token_ids and hot.cached_tokens == 39
