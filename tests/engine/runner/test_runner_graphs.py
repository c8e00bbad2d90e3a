"""Which graphs a runner keeps: models and samplers apart, and short steps whole."""

from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch
from support.kept_graphs import (
    GREEDY,
    SAMPLINGS,
    SETUP,
    Kept,
    core_with,
    requests,
    staggered,
    texts,
)
from support.small_engine import run

from quire.engine.request import GenerationRequest
from quire.engine.runner.graphs import (
    GraphKey,
    SamplerKey,
    StepGraphs,
    captured_sizes,
    fused,
)
from quire.engine.runner.sampler import Needs, Sampled

# ---------------------------------------------------------------- model and sampler apart


def test_one_model_serves_every_sampler_and_one_sampler_every_context() -> None:
    """What a step needs of its sampler multiplies samplers, and no model."""
    kept = Kept()
    core = core_with(kept, replace(SETUP, max_num_seqs=12))
    for kind in ("filtered", "penalised", "logprobs", "greedy") * 3:
        run(core, [replace(r, key=r.key) for r in requests(SAMPLINGS[kind], 7)])
    decodes = [key for key in kept.steps if isinstance(key, GraphKey) and not key.prefill_tokens]
    apart = [key for key in decodes if key.needs is None]
    samplers = [key for key in kept.steps if isinstance(key, SamplerKey)]
    assert len({key.needs for key in samplers if not key.prompts}) == 3
    assert len(apart) == len({key.decode_rows for key in apart})
    assert {key.needs for key in decodes} == {None, Needs()}, "only the plainest are whole"


def test_a_prompt_in_chunks_is_replayed_though_it_does_not_sample_yet() -> None:
    setup = replace(SETUP, max_num_batched_tokens=16)
    specs = [GenerationRequest(0, tuple(range(1, 70)), GREEDY)]
    expected = texts(run(core_with(None, setup), specs))
    kept = Kept()
    core = core_with(kept, setup)
    for _ in range(2):
        assert texts(run(core, specs)) == expected
    kept.replays.clear()
    assert texts(run(core, specs)) == expected
    assert [key.prefill_tokens for key in kept.models][:5] == [16] * 5
    assert core.runner.counters.eager_steps <= 6  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ("greedy", "filtered", "penalised"))
def test_a_sampler_behind_prompts_is_kept_though_some_rows_do_not_sample(kind: str) -> None:
    """A prompt in chunks rides beside others: its last token is its own until it samples."""
    setup = replace(SETUP, max_num_batched_tokens=20)
    lengths = (69, 30, 9, 33, 17)
    specs = [
        GenerationRequest(key, tuple(range(key + 1, key + 1 + length)), SAMPLINGS[kind])
        for key, length in enumerate(lengths)
    ]
    expected = staggered(core_with(None, setup), specs)
    kept = Kept()
    core = core_with(kept, setup)
    for _ in range(3):
        assert staggered(core, specs) == expected
    assert any(isinstance(key, SamplerKey) and key.prompts for key in kept.replays)


def test_slots_forget_the_ending_ids_of_requests_before() -> None:
    kept = replace(GREEDY, min_tokens=6, stop_token_ids=(7, 8))
    core = core_with(None, replace(SETUP, max_num_seqs=1))
    state = core.runner._state  # type: ignore[attr-defined]
    for params, held in ((GREEDY, 0), (kept, 2), (GREEDY, 0)):
        run(core, [GenerationRequest(0, (9, 8, 7), params)])
        assert int((state.stop_ids[0] >= 0).sum()) == held


@pytest.mark.parametrize("kind", ("greedy", "filtered"))
def test_a_short_prompt_is_one_graph_with_a_plain_sampler(kind: str) -> None:
    """A hit's few tokens end before a sampler behind them could be launched."""
    kept = Kept()
    core = core_with(kept)
    for _ in range(3):
        run(core, [GenerationRequest(0, tuple(range(1, 20)), SAMPLINGS[kind])])
    (prompt,) = {key for key in kept.models if key.prefill_tokens}
    assert prompt.needs == (Needs() if kind == "greedy" else None)
    assert not fused(1, Needs(), 129) and fused(8, Needs(), 128) and not fused(9, Needs())


def test_padding_among_the_rows_keeps_a_short_step_apart() -> None:
    """Results are a step's first rows; three decode rows are padded to four."""
    kept = Kept()
    core = core_with(kept, SETUP)
    for _ in range(3):
        staggered(core, requests(GREEDY, 5))
    mixed = [key for key in kept.models if key.prefill_tokens and key.decode_rows]
    assert {key.decode_rows for key in mixed if key.needs is None} == {4}
    assert {key.decode_rows for key in mixed if key.needs is not None} >= {1, 2}


def test_what_is_compiled_is_captured_unseen_and_run_first_where_that_fails() -> None:
    """A library may want a first call that no capture allows."""
    kept = Kept(fails=lambda key: key.rows == 2)
    specs = requests(GREEDY, 2)
    expected = texts(run(core_with(None), specs))
    core = core_with(kept)
    core.runner._warm = True  # type: ignore[attr-defined]
    for _ in range(2):  # prompts are captured when they come again
        assert texts(run(core, specs)) == expected
    assert {ran for key, ran in kept.tried if key.rows != 2} == {False}
    assert [ran for key, ran in kept.tried if key == GraphKey(2, 0, 0, 128, Needs())] == [
        False,
        True,
    ]
    assert all(key.rows != 2 for key in kept.replays) and kept.replays
    eager = 1 + 2 * (GREEDY.max_tokens - 1)  # the first prompts, and whatever had both rows
    assert core.runner.counters.eager_steps == eager  # type: ignore[attr-defined]


def test_what_is_captured_at_the_start_is_each_model_once() -> None:
    """And each sampler; whole steps where a second graph would cost most."""
    kept = Kept()
    core = core_with(kept, replace(SETUP, max_num_seqs=40))
    core.runner.warm_up((), lambda _share: None)  # type: ignore[attr-defined]
    models = [key for key in kept.steps if isinstance(key, GraphKey) and key.needs is None]
    sizes = captured_sizes(40)
    assert [key.decode_rows for key in models if not key.prefill_tokens] == sizes[::-1]
    assert [key.prefill_tokens for key in models if key.prefill_tokens] == [128, 64, 32, 16]
    whole = [key for key in kept.steps if isinstance(key, GraphKey) and key.needs is not None]
    assert {key.decode_rows for key in whole if not key.prefill_tokens} == {1, 2, 4, 8}
    assert {key.prefill_tokens for key in whole if not key.decode_rows} == {128, 64, 32, 16}
    kinds = {needs for key in kept.steps if isinstance(key, SamplerKey) for needs in [key.needs]}
    assert kinds == {Needs(), Needs(draws=True), Needs(draws=True, filters=True)}
    assert len(kept.steps) == len(models) + len(whole) + 3 * len(sizes) - len(whole) // 2


# ---------------------------------------------------------------- needs


def test_needs_change_with_the_rows() -> None:
    """What the rows need is asked again when other rows take their places, in the same slots."""
    kept = Kept()
    core = core_with(kept, replace(SETUP, max_num_seqs=1))
    for kind in ("greedy", "filtered", "greedy", "logprobs", "penalised"):
        run(core, [GenerationRequest(0, (9, 8, 7), SAMPLINGS[kind])])
    found = {key.needs for key in kept.steps if not isinstance(key, GraphKey) or key.needs}
    assert found == {
        Needs(),
        Needs(draws=True, filters=True),
        Needs(logprobs=True),
        Needs(adjusts=True),
    }


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which graphs were, by when they were captured."""
    numbers, order = count(), list[int]()

    class Graph:
        def capture_begin(self, **_: Any) -> None:
            self.number = next(numbers)

        def capture_end(self) -> None: ...

        def replay(self) -> None:
            order.append(self.number)

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    return order


@pytest.mark.usefixtures("replayed")
def test_most_graphs_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest unused goes first."""
    from quire.engine.runner import graphs

    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    kept = StepGraphs()
    keys = [GraphKey(rows, 0, 0, 64, Needs()) for rows in (1, 2, 3)]
    sampled = Sampled(torch.zeros(1))
    for key in keys[:2]:
        kept.capture(key, lambda: sampled)
    assert kept.replay(keys[0]) is sampled
    kept.capture(keys[2], lambda: sampled)
    assert [key in kept for key in keys] == [True, False, True]


def test_a_step_that_was_begun_goes_on_from_there_if_nothing_comes_between(
    replayed: list[int],
) -> None:
    kept = StepGraphs()
    one, other, missing = (SamplerKey(rows, Needs(masks=True)) for rows in (1, 2, 3))
    found = {key: [Sampled(torch.zeros(1)) for _ in range(2)] for key in (one, other)}
    for key, done in found.items():
        kept.capture(key, *map(partial, [next] * 2, [iter(done)] * 2))
    for begun, then in ((one, one), (one, other), (missing, one), (one, missing), (None, one)):
        replayed.clear()
        if begun is not None:
            kept.begin(begun)
        assert kept.replay(then) is (found[then][1] if then in found else None)
        first = [] if begun is not one else [0]
        rest = {one: [0, 1], other: [2, 3], missing: []}[then]
        assert replayed == (rest if begun is then else [*first, *rest])
