"""The runner's ways on the CPU: padded shapes are exact ones, what is kept, what is staged.

Captured steps are stood in for by `Kept`, which runs a kept step again where a graph would be
replayed: keys, padding, row slots and uploads are then those of a device.
"""

from dataclasses import replace
from typing import Any

import numpy as np
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
    most_rows,
)
from quire.engine.runner.runner import Runner
from quire.engine.runner.staging import Staging
from quire.engine.runner.warmup import WarmStep

CPU = torch.device("cpu")


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
