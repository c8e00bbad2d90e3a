"""Blocks that no window sees return to the pool, and a hit needs those of the window alone."""

from dataclasses import replace
from functools import cache
from typing import Any

from support.small_engine import FAMILIES, Setup, build_core, load_model, run
from support.windows import GREEDY, PROMPT, WINDOW, forget

from quire.engine.model.base import CausalModel
from quire.engine.request import GenerationRequest


@cache
def model() -> tuple[CausalModel, Any]:
    config = FAMILIES["mistral"]
    assert config.sliding_window == WINDOW
    return load_model(config, seed=3)


def in_use(core: Any) -> int:
    pool = core.scheduler.pool
    return int(pool.num_usable - pool.num_free)


def test_blocks_that_are_passed_return_to_the_pool() -> None:
    core = build_core(*model(), Setup(max_num_batched_tokens=8, caching=True))
    core.scheduler.submit(GenerationRequest(1, PROMPT, GREEDY))
    held = []
    while core.scheduler.has_requests:
        core.step()
        held.append(in_use(core))
    # Of 80 tokens those of a window that lies across four blocks, and the one that is begun.
    assert max(held[10:-1]) <= 4
    assert held[0] == 10 and held[-1] == 0


def test_a_hit_needs_the_windows_blocks_alone() -> None:
    """The rest has been taken for others meanwhile."""
    core = build_core(*model(), Setup(num_blocks=40, caching=True))
    first = run(core, [GenerationRequest(1, PROMPT, GREEDY)])[1, 0]
    cache, pool = core.scheduler.pool.prefix_cache, core.scheduler.pool
    hashes: list[bytes] = []
    cache.extend_hashes(hashes, b"", PROMPT, 10)
    known = cache.match(hashes, PROMPT)
    assert len(known) == 10
    for block in known[:6]:
        forget(pool, block)
    assert cache.match(hashes, PROMPT) == []
    assert cache.match(hashes, PROMPT, WINDOW - 1) == [0] * 7 + known[7:]
    again = run(core, [GenerationRequest(2, PROMPT, GREEDY)])[2, 0]
    assert again.cached_tokens >= 36
    assert again.token_ids == first.token_ids


def test_without_a_block_of_the_window_there_is_no_hit() -> None:
    core = build_core(*model(), Setup(num_blocks=40, caching=True))
    run(core, [GenerationRequest(1, PROMPT, GREEDY)])
    cache, pool = core.scheduler.pool.prefix_cache, core.scheduler.pool
    hashes: list[bytes] = []
    cache.extend_hashes(hashes, b"", PROMPT, 10)
    known = cache.match(hashes, PROMPT)
    forget(pool, known[8])
    assert cache.match(hashes, PROMPT, WINDOW - 1) == [0] * 5 + known[5:8]
    assert cache.match(hashes[:2], PROMPT, WINDOW - 1) == known[:2]


def test_a_sibling_that_comes_late_computes_what_its_leader_gave_back() -> None:
    """Two slots for three: the third begins when both others have long passed the prompt."""
    setup = Setup(max_num_seqs=2, num_blocks=129, overlap=True)
    params = replace(GREEDY, temperature=0.8, seed=5, max_tokens=30)
    spec = GenerationRequest(1, PROMPT[:30], params, n=3)
    wide = run(build_core(*model(), replace(setup, max_num_seqs=3)), [spec])
    late = run(build_core(*model(), setup), [spec])
    assert {k: o.token_ids for k, o in late.items()} == {k: o.token_ids for k, o in wide.items()}
