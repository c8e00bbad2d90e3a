"""The runner's ways on the CPU: padded shapes are exact ones, what is kept, what is staged.

Captured steps are stood in for by `Kept`, which runs a kept step again where a graph would be
replayed: keys, padding, row slots and uploads are then those of a device.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.small_engine import Outcome, Setup, build_core, load_model, model_config, run

from quire.engine.loop.core import EngineCore
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.runner.graphs import (
    MIXED_TOKENS,
    GraphKey,
    GraphSizes,
    StepGraphs,
    captured_sizes,
    context_bounds,
)
from quire.engine.runner.runner import Runner, _fixed_bytes
from quire.engine.runner.sampler import Needs, Sampled
from quire.engine.runner.staging import Staging

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

    def __init__(self, fails: Callable[[GraphKey], bool] = lambda _key: False) -> None:
        self.steps: dict[GraphKey, Callable[[], Sampled] | None] = {}
        self.replays: list[GraphKey] = []
        self._fails = fails

    def __contains__(self, key: GraphKey) -> bool:
        return key in self.steps

    def replay(self, key: GraphKey) -> Sampled | None:
        step = self.steps.get(key)
        if step is None:
            return None
        self.replays.append(key)
        return step()

    def capture(self, key: GraphKey, step: Callable[[], Sampled]) -> None:
        assert key not in self.steps, "captured twice"
        self.steps[key] = None if self._fails(key) else step


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
    assert any(key.prefill_tokens and key.decode_rows for key in kept.replays)
    assert any(key.decode_rows not in (0, 7) for key in kept.replays)
    assert counters.graph_steps == len(kept.replays) > counters.eager_steps


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


def test_a_step_is_kept_the_second_time_it_is_wanted() -> None:
    kept = Kept()
    core = core_with(kept)
    run(core, [GenerationRequest(0, (5, 6, 7), GREEDY)])
    (decode,) = kept.steps
    assert (decode.decode_rows, decode.prefill_tokens) == (1, 0)
    assert kept.replays.count(decode) == GREEDY.max_tokens - 1 - 2
    run(core, [GenerationRequest(0, (5, 6, 7), GREEDY)])
    assert len(kept.steps) == 2, "the prompt's step too, now that it came again"


def test_what_cannot_be_kept_runs_eagerly_and_is_not_tried_again() -> None:
    kept = Kept(fails=lambda key: key.decode_rows == 2)
    specs = requests(GREEDY, 2)
    expected = run(core_with(None), specs)
    core = core_with(kept)
    for _ in range(3):  # a second capture of the same key would raise
        found = run(core, specs)
        assert texts(found) == texts(expected)
    assert any(step is None for step in kept.steps.values())
    assert all(key.decode_rows != 2 for key in kept.replays)


def texts(outcomes: dict[tuple[int, int], Outcome]) -> dict[tuple[int, int], list[int]]:
    return {key: outcome.token_ids for key, outcome in outcomes.items()}


# ---------------------------------------------------------------- keys


def test_needs_change_with_the_rows() -> None:
    """What the rows need is asked again when other rows take their places, in the same slots."""
    kept = Kept()
    core = core_with(kept, replace(SETUP, max_num_seqs=1))
    for kind in ("greedy", "filtered", "greedy", "logprobs", "penalised"):
        run(core, [GenerationRequest(0, (9, 8, 7), SAMPLINGS[kind])])
    needs = {key.needs for key in kept.steps if not key.prefill_tokens}
    assert needs == {
        Needs(),
        Needs(draws=True, filters=True),
        Needs(logprobs=True),
        Needs(adjusts=True),
    }


@pytest.mark.parametrize("most", (1, 2, 3, 7, 8, 100, 256, 300))
def test_mixed_keys_cover_what_they_are_asked_for(most: int) -> None:
    sizes = GraphSizes(most, 4096)
    for decode in {0, 1, most // 2, most - 1}:
        for longer in {1, 2, max(1, most - decode)}:
            for tokens in (2 * longer, 15 + longer, 128, 512):
                key = sizes.mixed(decode, longer, max(tokens, 2 * longer), 50, Needs())
                if key is None:
                    assert max(tokens, 2 * longer) > MIXED_TOKENS[-1]
                    continue
                assert decode <= key.decode_rows <= most
                assert longer < key.prefill_rows <= 2 * longer, "one row is left for padding"
                assert tokens <= key.prefill_tokens or tokens < 2 * longer
                bound = 4 * (key.decode_rows + key.prefill_tokens)
                bound += 32 * (key.decode_rows + key.prefill_rows) + 64
                assert bound <= _fixed_bytes(most)


def test_mixed_keys_stop_where_a_step_is_long() -> None:
    sizes = GraphSizes(8, 100)
    assert sizes.mixed(0, 1, 64, 64, Needs()) is not None
    assert sizes.mixed(0, 1, 65, 65, Needs()) is None, "padding would pass the model's length"
    assert GraphSizes(8, 8).mixed(0, 1, 4, 4, Needs()) is None


def test_context_bounds_cover_the_model_length() -> None:
    for longest in (10, 4096, 4097, 40_960):
        bounds = context_bounds(longest)
        assert bounds[-1] == longest
        assert bounds == sorted(set(bounds))
    assert captured_sizes(1) == [1]


def test_most_graphs_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest unused goes first."""
    from quire.engine.runner import graphs

    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))

    class Graph:
        def capture_begin(self, **_: Any) -> None: ...

        def capture_end(self) -> None: ...

        def replay(self) -> None: ...

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    kept = StepGraphs()
    keys = [GraphKey(rows, 0, 0, 64, Needs()) for rows in (1, 2, 3)]
    sampled = Sampled(torch.zeros(1))
    for key in keys[:2]:
        kept.capture(key, lambda: sampled)
    assert kept.replay(keys[0]) is sampled
    kept.capture(keys[2], lambda: sampled)
    assert [key in kept for key in keys] == [True, False, True]


# ---------------------------------------------------------------- staging, faults


def test_staging_gives_back_what_was_put() -> None:
    staging = Staging(CPU, capacity=64)
    for size in (1, 3, 100, 7):
        staging.begin()
        arrays = {
            "a": np.arange(size, dtype=np.int32),
            "b": np.arange(2 * size, dtype=np.int64).reshape(2, size),
            "c": np.linspace(0, 1, size, dtype=np.float32),
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
