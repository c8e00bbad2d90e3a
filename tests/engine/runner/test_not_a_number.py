"""Logits that are no numbers end their request alone; parameters at the edge of fp32 do what their
limits say."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.small_engine import Setup, build_core, load_model, model_config
from torch import Tensor

from quire.engine.loop.core import EngineCore
from quire.engine.loop.stats import snapshot
from quire.engine.request import FinishReason, GenerationRequest, SamplingParams
from quire.engine.runner.sampler import Needs, Sampler
from quire.engine.runner.slots import SlotState
from quire.engine.runner.staging import Staging
from quire.engine.scheduling.plan import Admission, SamplingNumbers
from quire.kernels import reference

NAN, INF = float("nan"), float("inf")
SETUP = Setup(max_num_seqs=4, caching=True)
GREEDY = SamplingParams(max_tokens=6)
DRAWN = replace(GREEDY, temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, seed=7)
SAMPLINGS = {
    "greedy": GREEDY,
    "drawn": replace(GREEDY, temperature=0.8, seed=7),
    "filtered": DRAWN,
    "penalised": replace(GREEDY, repetition_penalty=1.2, min_tokens=3, eos_token_ids=(5,)),
    "logprobs": replace(DRAWN, logprobs=3),
}
BROKEN = {
    "one NaN": lambda row: row[100].fill_(NAN),
    "all NaN": lambda row: row.fill_(NAN),
    "one infinite": lambda row: row[100].fill_(INF),
    "nothing finite": lambda row: row.fill_(-INF),
}


class BrokenOps:
    """The reference kernels; from some position on, a slot's logits are broken."""

    def __init__(self, slot: int, position: int, how: Any) -> None:
        self._broken = (slot, position, how)

    def __getattr__(self, name: str) -> Any:
        return getattr(reference, name)

    def spoil(self, logits: Tensor, slots: Tensor, positions: Tensor) -> None:
        slot, first, how = self._broken
        for row in torch.nonzero((slots == slot) & (positions >= first))[:, 0].tolist():
            how(logits[row])


def broken_core(how: Any, overlap: bool) -> EngineCore:
    model, watched = load_model(model_config(), seed=2)
    core = build_core(model, watched, replace(SETUP, overlap=overlap))
    ops = BrokenOps(1, 8, how)
    runner: Any = core.runner
    sampler = runner._sampler

    def spoilt(logits: Tensor, slots: Tensor, positions: Tensor, *rest: Any) -> Any:
        ops.spoil(logits, slots, positions)
        return sampler(logits, slots, positions, *rest)

    if how is not None:
        runner._sampler = spoilt
    return core


def outcomes(core: EngineCore, params: SamplingParams) -> dict[int, tuple[list[int], Any]]:
    for key in range(3):
        core.scheduler.submit(GenerationRequest(key, tuple(range(key + 1, key + 6)), params))
    tokens: dict[int, list[int]] = {key: [] for key in range(3)}
    ends: dict[int, Any] = {}
    for _ in range(200):
        for output in core.step():
            tokens[output.key] += output.token_ids
            if output.finish is not None:
                ends[output.key] = (output.finish, output.error_id)
        if not core.scheduler.has_requests:
            break
    assert core.scheduler.pool.num_free == core.scheduler.pool.num_usable
    return {key: (tokens[key], ends[key]) for key in tokens}


@pytest.mark.parametrize("overlap", (False, True))
@pytest.mark.parametrize("kind", SAMPLINGS)
@pytest.mark.parametrize("how", BROKEN)
def test_a_row_without_numbers_ends_alone(
    how: str, kind: str, overlap: bool, caplog: pytest.LogCaptureFixture
) -> None:
    expected = outcomes(broken_core(None, overlap), SAMPLINGS[kind])
    core = broken_core(BROKEN[how], overlap)
    with caplog.at_level(logging.ERROR):
        found = outcomes(core, SAMPLINGS[kind])
    assert {key: found[key] for key in (0, 2)} == {key: expected[key] for key in (0, 2)}
    tokens, (finish, error_id) = found[1]
    assert finish is FinishReason.ERROR
    assert tokens == expected[1][0][:3], "what came before it counts"
    assert snapshot(core.scheduler).not_a_number == 1
    assert [r for r in caplog.records if error_id in r.getMessage()]
    assert "not finite" in caplog.text


def test_blocks_of_a_row_without_numbers_are_not_shared() -> None:
    core = broken_core(BROKEN["all NaN"], overlap=False)
    outputs, _end = outcomes(core, GREEDY)[1]
    before = snapshot(core.scheduler).prefix_tokens_hit
    core.scheduler.submit(GenerationRequest(9, (*range(2, 7), *outputs, 1), GREEDY))
    core.step()
    assert snapshot(core.scheduler).prefix_tokens_hit == before + SETUP.block_size


def test_a_slot_never_holds_what_is_no_token() -> None:
    """A step in flight looks an id up, and counts it, before the host knows."""
    slots, counts = torch.tensor([0, 1], dtype=torch.int32), torch.zeros(3, 5, dtype=torch.int32)
    computed, last = (torch.full((3,), 4, dtype=torch.int32) for _ in range(2))
    tokens = torch.tensor([2, -1])
    reference.advance(slots, None, computed, None, tokens, last, counts)
    assert last.tolist() == [2, 0, 4]
    assert counts[1].tolist() == [1, 0, 0, 0, 0]


# ---------------------------------------------------------------- the edges of fp32

VOCAB = 500


def drawn(params: SamplingParams, logits: Tensor, times: int = 4000) -> Tensor:
    """Tokens of so many requests that differ in their seeds alone. logits: [V]."""
    state = SlotState(times, 1, VOCAB, torch.device("cpu"))
    staging = Staging(torch.device("cpu"))
    admitted = tuple(
        Admission(slot, 0, slot, 4, 1, SamplingNumbers.of(params, seed=slot * 7919), (3, 4), ())
        for slot in range(times)
    )
    staging.begin()
    state.stage(staging, admitted, ())
    staging.upload()
    state.write(staging, admitted)
    slots = torch.arange(times, dtype=torch.int32)
    positions = torch.full((times,), 2, dtype=torch.int32)
    needs = Needs.of(SamplingNumbers.of(params, seed=0))
    sampler = Sampler(reference, state)  # type: ignore[arg-type]
    return sampler(logits.repeat(times, 1), slots, positions, needs).tokens


def logits_of(best: float = 30.0) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.rand(VOCAB, generator=rng) * 2 * best - best


HOT = SamplingParams(temperature=1.0)


@pytest.mark.parametrize("temperature", (5e-324, 1e-45, 1.2e-38, 1e-30, 1e-12, 1e-10, 1e-9))
@pytest.mark.parametrize("filters", ({}, {"top_k": 50, "top_p": 0.9, "min_p": 0.1}))
def test_no_temperature_is_greedy(temperature: float, filters: dict[str, Any]) -> None:
    logits = logits_of()
    tokens = drawn(replace(HOT, temperature=temperature, **filters), logits, 50)
    assert tokens.unique().tolist() == [int(logits.argmax())]


@pytest.mark.parametrize("temperature", (1e6, 1e30, 3e38, 1e39, 1e308))
def test_endless_temperature_is_uniform_over_what_is_kept(temperature: float) -> None:
    logits = logits_of()
    tokens = drawn(replace(HOT, temperature=temperature, top_k=10), logits)
    kept = logits.topk(10).indices.sort().values
    found, counts = tokens.unique(return_counts=True)
    assert found.tolist() == kept.tolist()
    assert counts.min() > 300
    everything = drawn(replace(HOT, temperature=temperature), logits)
    assert len(everything.unique()) > 0.99 * VOCAB


@pytest.mark.parametrize("top_p", (5e-324, 1e-45, 1e-38, 1e-7))
def test_no_nucleus_is_the_best_alone(top_p: float) -> None:
    logits = logits_of(1.0)
    assert drawn(replace(HOT, top_p=top_p), logits, 200).unique().tolist() == [int(logits.argmax())]


@pytest.mark.parametrize("least", (5e-324, 1e-45, 1e-38))
def test_no_min_p_keeps_all(least: float) -> None:
    logits = logits_of(1.0)
    assert drawn(replace(HOT, min_p=least), logits).equal(drawn(HOT, logits))


@pytest.mark.parametrize("factor", (5e-324, 1e-38, 1e-20))
def test_no_repetition_penalty_takes_the_best_that_was_there(factor: float) -> None:
    logits = logits_of()
    logits[3], logits[4] = 2.0, 1.0
    params = SamplingParams(repetition_penalty=factor)
    assert drawn(params, logits, 5).tolist() == [3] * 5
    assert drawn(replace(params, temperature=1e-38), logits, 5).tolist() == [3] * 5


@pytest.mark.parametrize("factor", (1e20, 3e38, 1e300))
def test_endless_repetition_penalty_takes_what_was_not_there(factor: float) -> None:
    logits = logits_of()
    logits[3], logits[4] = 40.0, -1.0
    second = int(logits.masked_fill(torch.arange(VOCAB) == 3, -INF).argmax())
    assert drawn(SamplingParams(repetition_penalty=factor), logits, 5).tolist() == [second] * 5
