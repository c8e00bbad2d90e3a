"""The runner's ways on the CPU: padded shapes are exact ones, what is kept, what is staged.

Captured steps are stood in for by `Kept`, which runs a kept step again where a graph would be
replayed: keys, padding, row slots and uploads are then those of a device.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from support.small_engine import Outcome, Setup, build_core, load_model, model_config, run

from quire.engine.loop.core import EngineCore
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.runner.graphs import (
    Done,
    GraphKey,
    Key,
    SamplerKey,
    StepGraphs,
    captured_sizes,
    fused,
    most_rows,
)
from quire.engine.runner.runner import Runner
from quire.engine.runner.sampler import Needs, Sampled
from quire.engine.runner.staging import Staging
from quire.engine.runner.warmup import WarmStep

CPU = torch.device("cpu")
SETUP = Setup(max_num_seqs=7, max_num_batched_tokens=96, block_size=4)
GREEDY = SamplingParams(max_tokens=12)
SAMPLINGS = {
    "greedy": GREEDY,
    "seeded": replace(GREEDY, temperature=0.9, seed=4),
    "filtered": replace(GREEDY, temperature=0.9, top_k=30, top_p=0.9, min_p=0.02, seed=4),
    "penalised": replace(GREEDY, repetition_penalty=1.4, frequency_penalty=0.3, min_tokens=4),
    "logprobs": replace(GREEDY, logprobs=3),
}


class Kept:
    """Steps kept as closures. `fails`: keys whose capture does not work."""

    def __init__(self, fails: Callable[[Key], bool] = lambda _key: False) -> None:
        self.steps: dict[Key, Callable[[], Done] | None] = {}
        self.replays: list[Key] = []
        self.tried: list[tuple[Key, bool]] = []
        self._fails = fails

    def __contains__(self, key: Key) -> bool:
        return key in self.steps

    def replay(self, key: Key) -> Done | None:
        step = self.steps.get(key)
        if step is None:
            return None
        self.replays.append(key)
        return step()

    def capture(self, key: Key, step: Callable[[], Done], *, ran: bool = True) -> None:
        assert key not in self.steps, "captured twice"
        self.tried.append((key, ran))
        if not self._fails(key):
            self.steps[key] = step
        elif ran:
            self.steps[key] = None

    @property
    def models(self) -> list[GraphKey]:
        """Of what was replayed, the steps and models' parts."""
        return [key for key in self.replays if isinstance(key, GraphKey)]


MODEL = load_model(model_config(), seed=2)


def core_with(kept: Kept | None, setup: Setup = SETUP) -> EngineCore:
    core = build_core(*MODEL, setup)
    core.runner._graphs = kept  # type: ignore[attr-defined]
    return core


def requests(params: SamplingParams, count: int = 7) -> list[GenerationRequest]:
    """Some of one token, some around block boundaries."""
    lengths = (1, 3, 4, 5, 9, 1, 16)
    return [
        GenerationRequest(key, tuple((key * 29 + i * 7) % 383 + 1 for i in range(lengths[key])), p)
        for key, p in enumerate([params] * count)
    ]


def staggered(core: EngineCore, specs: list[GenerationRequest]) -> dict[int, Any]:
    """Arrivals two turns apart, so that prompts ride beside decode rows."""
    waiting, tokens, turn = list(specs), {}, 0
    while waiting or core.scheduler.has_requests:
        if waiting and turn % 2 == 0:
            core.scheduler.submit(waiting.pop(0))
        for output in core.step():
            assert output.error_id is None
            tokens.setdefault(output.key, []).extend(output.token_ids)
            tokens.setdefault(("logprobs", output.key), []).extend(output.logprobs or [])
        turn += 1
    return tokens


# ---------------------------------------------------------------- padded = exact


@pytest.mark.parametrize("overlap", (False, True))
@pytest.mark.parametrize("kind", SAMPLINGS)
def test_padded_steps_are_exact_ones(kind: str, overlap: bool) -> None:
    """Mixed and one-token steps, three times over: eager, eager and kept, and from what is kept."""
    setup = replace(SETUP, overlap=overlap)
    specs = requests(SAMPLINGS[kind])
    expected = staggered(core_with(None, setup), specs)
    kept = Kept()
    core = core_with(kept, setup)
    counters = core.runner.counters  # type: ignore[attr-defined]
    for turn in range(3):
        found = staggered(core, specs)
        assert found.keys() == expected.keys()
        for key, tokens in expected.items():
            if isinstance(key, int):
                assert found[key] == tokens, f"pass {turn}, request {key}"
            else:
                assert [lp.token_id for lp in found[key]] == [lp.token_id for lp in tokens]
                ours, theirs = ([lp.logprob for lp in x] for x in (found[key], tokens))
                assert ours == pytest.approx(theirs, abs=1e-4)
    assert any(key.prefill_tokens and key.decode_rows for key in kept.models)
    assert any(key.decode_rows not in (0, 7) for key in kept.models)
    assert counters.graph_steps == len(kept.models) > counters.eager_steps
    apart = kind not in ("greedy", "seeded")
    samplers = [key for key in kept.replays if isinstance(key, SamplerKey)]
    assert apart == any(not key.prompts for key in samplers)
    assert any(key.prompts for key in samplers), "behind prompts too"


def test_null_slot_stays_where_it_is() -> None:
    """Padding computes, and is forgotten: no count moves, no block but the null one is written."""
    kept = Kept()
    core = core_with(kept)
    for _ in range(3):
        staggered(core, requests(GREEDY, 5))
    state = core.runner._state  # type: ignore[attr-defined]
    assert kept.replays
    assert int(state.num_computed[state.null_slot]) == 0
    assert state.block_tables[state.null_slot].tolist() == [0] * state.block_tables.shape[1]


def test_the_warm_up_runs_more_rows_than_are_ever_kept() -> None:
    """As many as hold a step's most tokens, where requests are short."""
    runner: Any = core_with(None).runner
    rows = most_rows(SETUP.max_num_seqs) + 3
    runner.warm_up([WarmStep(0, (1,) * rows, 8)], lambda _share: None)


def test_a_step_is_kept_the_second_time_it_is_wanted() -> None:
    kept = Kept()
    core = core_with(kept)
    run(core, [GenerationRequest(0, (5, 6, 7), GREEDY)])
    (decode,) = kept.steps
    assert isinstance(decode, GraphKey)
    assert (decode.decode_rows, decode.prefill_tokens) == (1, 0)
    assert kept.replays.count(decode) == GREEDY.max_tokens - 1 - 2
    run(core, [GenerationRequest(0, (5, 6, 7), GREEDY)])
    assert len(kept.steps) == 2, "the prompt's step too, now that it came again"


def test_what_cannot_be_kept_runs_eagerly_and_is_not_tried_again() -> None:
    kept = Kept(fails=lambda key: key.rows == 2)
    specs = requests(GREEDY, 2)
    expected = run(core_with(None), specs)
    core = core_with(kept)
    for _ in range(3):  # a second capture of the same key would raise
        found = run(core, specs)
        assert texts(found) == texts(expected)
    assert any(step is None for step in kept.steps.values())
    assert all(key.rows != 2 for key in kept.replays)


def texts(outcomes: dict[tuple[int, int], Outcome]) -> dict[tuple[int, int], list[int]]:
    return {key: outcome.token_ids for key, outcome in outcomes.items()}


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


# ---------------------------------------------------------------- staging, faults


def test_staging_gives_back_what_was_put() -> None:
    staging = Staging(CPU, capacity=64)
    for size in (1, 3, 100, 7):
        staging.begin()
        arrays = {
            "a": np.arange(size, dtype=np.int32),
            "b": np.arange(2 * size, dtype=np.int64).reshape(2, size),
            "c": np.linspace(0, 1, size, dtype=np.float32),
            "d": np.arange(2 * size, dtype=np.int32).reshape(size, 2).T,
        }
        for name, array in arrays.items():
            staging.put(name, array)
        staging.upload()
        for name, array in arrays.items():
            assert np.array_equal(staging.get(name).numpy(), array)
    staging.begin()
    assert staging.find("a") is None
    with pytest.raises(KeyError):
        staging.get("a")


def test_only_a_lost_device_is_fatal() -> None:
    assert not Runner.is_fatal(torch.OutOfMemoryError("CUDA out of memory"))
    assert not Runner.is_fatal(ValueError("shapes"))
    assert Runner.is_fatal(torch.AcceleratorError("an illegal memory access", 700))
    assert Runner.is_fatal(RuntimeError("CUDA error: unspecified launch failure"))


def test_after_a_failed_step_rows_are_sent_again() -> None:
    """What the device holds of the last step's rows is not taken for granted."""
    kept = Kept()
    core = core_with(kept)
    runner: Any = core.runner
    expected = texts(run(core, requests(GREEDY, 3)))
    core.scheduler.submit(requests(GREEDY, 1)[0])
    core.step()
    runner._row_slots.fill_(runner._state.null_slot)
    runner.reset()
    while core.scheduler.has_requests:
        core.step()
    assert texts(run(core, requests(GREEDY, 3))) == expected
