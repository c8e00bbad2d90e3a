"""Steps with constrained rows: planned ahead, launched in two parts, failing together."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from support.cycle_matchers import PARAMS, Cycle, Cycles, Slow, asked, engine, outputs, run
from support.small_engine import PaddedRunner, Setup

from quire.engine.errors import CorruptStateError
from quire.engine.loop.core import EngineCore
from quire.engine.request import (
    FinishReason,
    GenerationRequest,
    Output,
)
from quire.engine.runner.graphs import GraphKey, SamplerKey
from quire.engine.scheduling.matching import constrained
from quire.engine.scheduling.plan import Masks, StepPlan, StepResult


def begun(core: EngineCore, requests: Sequence[GenerationRequest]) -> list[Output]:
    """Some steps of them, until the next step is planned while masks are made."""
    for request in requests:
        core.scheduler.submit(request, constrained(Cycle(), request))
    said = [output for _ in range(4) for output in core.step()]
    assert core.scheduler.num_in_flight == 2
    return said


def test_requests_end_and_come_while_the_next_step_is_planned_already() -> None:
    """One is cancelled, one ends by a stop string; others go on, and a new one comes in."""
    core = engine(Setup(max_num_seqs=4, overlap=True, caching=True), Slow())
    said = begun(core, [asked(key) for key in range(1, 5)])
    core.abort(1)
    core.scheduler.finish(2, 0, 1)
    core.scheduler.submit(asked(5), constrained(Cycle(), asked(5)))
    said += outputs(core)
    for key in (3, 4, 5):
        its = [one for one in said if one.key == key]
        tokens = [token for one in its for token in one.token_ids]
        assert (tokens, its[-1].finish) == run(engine(Setup()), [asked(key)])[key, 0]
    assert core.scheduler.pool.num_free == core.scheduler.pool.num_usable


def test_a_step_that_fails_takes_the_next_one_along(monkeypatch: pytest.MonkeyPatch) -> None:
    core = engine(Setup(max_num_seqs=4, overlap=True), Slow())
    begun(core, [asked(1), asked(2)])

    def failing(_: object) -> Any:
        monkeypatch.undo()
        raise RuntimeError("this step")

    monkeypatch.setattr(core.scheduler, "masks", failing)
    ended = core.step()
    assert {one.key: one.finish for one in ended} == dict.fromkeys((1, 2), FinishReason.ERROR)
    assert run(core, [asked(3)]) == run(engine(Setup()), [asked(3)])


def test_a_fault_of_planning_beside_masks_ends_the_engine_when_all_is_said() -> None:
    core = engine(Setup(max_num_seqs=4, overlap=True), Slow())
    begun(core, [asked(1), asked(2)])

    def failing() -> None:
        raise RuntimeError("planned badly")

    core.scheduler.schedule = failing  # type: ignore[method-assign]
    assert {one.key for one in core.step() if one.token_ids} == {1, 2}
    with pytest.raises(CorruptStateError, match="planned badly"):
        core.step()


def test_a_fault_of_planning_beside_masks_is_not_forgiven_with_the_step_that_it_breaks() -> None:
    core = engine(Setup(max_num_seqs=4, overlap=True), Slow())
    begun(core, [asked(1), asked(2)])

    def failing(*_: object) -> Any:
        raise RuntimeError("planned badly")

    core.scheduler.schedule = core.scheduler.masks = failing  # type: ignore[method-assign]
    with pytest.raises(CorruptStateError, match="planned badly"):
        core.step()


def test_nobody_waits_for_a_constraint_that_is_being_compiled() -> None:
    matchers = Cycles()
    matchers.open.clear()
    core = engine(Setup(max_num_seqs=4, overlap=True), matchers)
    core.submit(asked(1))
    core.submit(asked(2))
    free = GenerationRequest(3, (5, 6), replace(PARAMS, eos_token_ids=()))
    core.submit(free)
    done: list[int] = []
    while 3 not in done:
        done += [output.key for output in core.step() if output.finish is not None]
    assert done == [3] and core.has_requests
    core.abort(2)
    matchers.open.set()
    assert {output.key for output in outputs(core)} == {1}


def test_a_constrained_row_is_in_every_step_and_masks_come_while_the_model_is_at_work() -> None:
    """Of each step: its model is launched before the last one's result is looked at, its sampler
    after that, when the next step is planned, and just before that one's model."""
    core = engine(Setup(max_num_seqs=2, overlap=True))
    core.submit(asked(1))
    while not core.scheduler.has_requests:
        core.step()
    free = replace(PARAMS, max_tokens=40, eos_token_ids=())
    core.scheduler.submit(GenerationRequest(2, (5, 6), free))
    events: list[str] = []
    runner, scheduler = core.runner, core.scheduler
    schedule, apply, execute, sample = (
        scheduler.schedule,
        scheduler.apply,
        runner.execute,
        runner.sample,
    )

    def planned() -> StepPlan | None:
        events.append("plan")
        return schedule()

    def launched(plan: StepPlan) -> Any:
        keys = "".join(str(row.key) for row in sorted(plan.rows))
        events.append(f"model {keys}")
        return execute(plan)

    def sampled(masks: Masks) -> Any:
        events.append("sampler" if masks else "sampler of what has ended")
        return sample(masks)

    def applied(plan: StepPlan, result: StepResult) -> list[Output]:
        events.append("apply")
        return apply(plan, result)

    runner.execute = launched  # type: ignore[method-assign]
    runner.sample = sampled  # type: ignore[method-assign]
    scheduler.apply = applied  # type: ignore[method-assign]
    scheduler.schedule = planned  # type: ignore[method-assign]
    found = [output for output in outputs(core) if output.token_ids]
    count = sum(output.key == 1 for output in found)
    ahead = ["plan", "sampler", "model 12", "apply"]
    last = ["plan", "sampler of what has ended", "model 2", "apply"]
    expected = [*ahead * count, *last]
    assert events[: len(expected)] == expected
    assert scheduler.counters.discarded == 1


def test_the_model_of_masked_steps_is_kept_as_other_steps_are() -> None:
    core = engine(Setup(max_num_seqs=6, max_num_batched_tokens=16, overlap=True, padded=True))
    runner = core.runner
    assert isinstance(runner, PaddedRunner)
    for turn in range(2):
        for request in (asked(10 * turn + key) for key in range(5)):
            core.scheduler.submit(request, constrained(Cycle(), request))
        assert all(output.error_id is None for output in outputs(core))
    apart = [key for key in runner.kept if isinstance(key, GraphKey) and key.needs is None]
    assert any(key.prefill_tokens for key in apart)
    assert any(key.decode_rows == 6 and not key.prefill_tokens for key in apart)
    samplers = [key for key in runner.kept if isinstance(key, SamplerKey)]
    assert any(key.rows == 6 and key.needs.masks for key in samplers)
    assert any(key.rows == 6 for key in runner.begun), "logits wait for no mask"
    assert runner.counters.graph_steps > runner.counters.eager_steps
