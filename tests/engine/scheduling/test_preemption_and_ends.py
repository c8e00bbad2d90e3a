"""Preemption, ends, siblings and resumed streams."""

from dataclasses import replace

import pytest
from support.scheduler_cases import PROMPT, build, last_plan, spec, stopping_spec
from support.simulation import Shape
from support.simulator import Simulator
from support.toy_device import Oracle

from quire.engine.request import FinishReason
from quire.engine.scheduling.plan import StepResult
from quire.engine.scheduling.request import Request, Status

# ------------------------------------------------------------ preemption


def crowd(**shape: object) -> Simulator:
    """Three requests that fit at first and not for long."""
    simulator = build(num_blocks=11, block_size=4, max_num_batched_tokens=64, **shape)
    for key, priority in ((1, 1), (2, 0), (3, 0)):
        prompt = tuple(1 + (key + i) % 3 for i in range(11))
        simulator.submit(spec(key, prompt, 12, priority=priority))
    return simulator


def test_the_victim_is_the_last_admitted_of_the_lowest_priority() -> None:
    simulator = crowd()
    victims = []
    while simulator.open:
        before = {r.key: r.preemptions for r in simulator.scheduler.unfinished()}
        simulator.turn()
        for request in simulator.scheduler.unfinished():
            victims += [request.key] * (request.preemptions - before[request.key])
    assert victims and victims[0] == 3
    assert 1 not in victims, "the highest in rank is never preempted"
    simulator._check_empty()


@pytest.mark.parametrize("depth", (1, 2))
def test_a_request_may_be_preempted_with_a_step_in_flight(depth: int) -> None:
    """Its late token is dropped and drawn again, and comes out equal."""
    simulator = crowd(depth=depth)
    simulator.drain()
    assert simulator.tally.stale_epochs > 0
    assert simulator.scheduler.counters.discarded > 0
    assert all(len(record.tokens) == 12 for record in simulator.records.values())


def test_nothing_planned_in_a_step_is_preempted_in_it() -> None:
    simulator = crowd()
    while simulator.open:
        simulator.launch()
        if simulator.in_flight:
            for row, request in simulator.requests_of(last_plan(simulator)).items():
                assert request.status is Status.RUNNING and row.epoch == request.epoch
            simulator.apply()


# ------------------------------------------------------------ endings


def test_abort_ends_a_waiting_request_at_once() -> None:
    simulator = build(max_num_seqs=1)
    simulator.submit(spec(1))
    simulator.submit(spec(2))
    simulator.turn()
    simulator.abort(2)
    simulator.turn()
    assert simulator.records[2, 0].ended is FinishReason.CANCELLED
    assert not simulator.records[2, 0].started
    simulator.drain()


def test_an_aborted_requests_blocks_return_after_the_steps_that_hold_it() -> None:
    simulator = build(depth=2)
    simulator.submit(spec(1, max_tokens=8))
    simulator.launch()
    simulator.launch()
    used = simulator.pool.num_usable - simulator.pool.num_free
    simulator.abort(1)
    simulator.abort(1)
    assert simulator.pool.num_usable - simulator.pool.num_free == used > 0
    simulator.apply()
    assert simulator.pool.num_free < simulator.pool.num_usable
    simulator.apply()
    assert simulator.pool.num_free == simulator.pool.num_usable
    simulator._hear(simulator.scheduler.drain_outputs())
    simulator._check_empty()


def test_abort_ends_all_siblings_also_those_held_back() -> None:
    simulator = build(max_num_batched_tokens=4)
    simulator.submit(spec(1, n=3))
    simulator.turn()
    simulator.abort(1)
    simulator.drain()
    assert {record.ended for record in simulator.records.values()} == {FinishReason.CANCELLED}


def test_finish_by_a_stop_string_counts_what_was_not_kept() -> None:
    simulator = build(depth=1, num_blocks=40)
    simulator.submit(spec(1, max_tokens=20))
    while len(simulator.records[1, 0].tokens) < 6:
        simulator.turn()
    simulator.finish(1, 0, kept=4)
    simulator.finish(1, 0, kept=4)
    simulator.drain()
    counters = simulator.scheduler.counters
    assert counters.generated - counters.discarded == 4


def test_a_failed_step_ends_those_in_flight_and_nobody_else() -> None:
    simulator = build(depth=2, max_num_seqs=2, max_num_batched_tokens=64)
    for key in (1, 2, 3):
        simulator.submit(spec(key, (key,) * 10))
    simulator.launch()
    simulator.launch()
    simulator.fail(rows=1)
    ended = {key: simulator.records[key, 0].ended for key in (1, 2, 3)}
    assert ended == {1: FinishReason.ERROR, 2: FinishReason.ERROR, 3: None}
    assert simulator.pool.num_cached == 0, "nothing a failed step wrote is ever hit"
    simulator.drain()
    assert simulator.records[3, 0].ended is FinishReason.LENGTH


@pytest.mark.parametrize("depth", (0, 1))
def test_a_fault_in_one_rows_result_ends_that_request_alone(
    depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = build(depth=depth, num_blocks=40)
    for key in (1, 2, 3):
        simulator.submit(spec(key, (key,) * 10, 8))
    for _ in range(4):
        simulator.turn()
    register = simulator.scheduler.completion._register_full_blocks

    def fails(request: Request) -> None:
        if request.key == 2:
            raise RuntimeError("spilled coffee")
        register(request)

    monkeypatch.setattr(simulator.scheduler.completion, "_register_full_blocks", fails)
    simulator.records[2, 0].cut = FinishReason.ERROR
    simulator.drain()  # counts tokens, blocks and slots
    ended = [simulator.records[key, 0].ended for key in (1, 2, 3)]
    assert ended == [FinishReason.LENGTH, FinishReason.ERROR, FinishReason.LENGTH]


def test_a_result_that_does_not_fit_the_plan_changes_nothing() -> None:
    simulator = build()
    simulator.submit(spec(1))
    simulator.launch()
    plan, tokens = simulator.in_flight[0]
    for bad in ([], [[1], [1]]):
        with pytest.raises(ValueError, match=f"{len(bad)} rows of tokens for 1 that sample"):
            simulator.scheduler.apply(plan, StepResult(bad))
    assert tokens
    simulator.drain()


def test_blocks_of_a_request_that_ends_with_the_step_that_filled_them_are_kept() -> None:
    simulator = build(max_num_batched_tokens=64)
    simulator.submit(spec(1, max_tokens=1))
    simulator.drain()
    simulator.submit(spec(2, max_tokens=1))
    simulator.drain()
    assert simulator.tally.hits == 1


# ------------------------------------------------------------ siblings


@pytest.mark.parametrize("caching", (True, False))
@pytest.mark.parametrize("prompt", (1, 2, 4, 5, 8, 9))
def test_siblings_fork_the_leaders_prompt_at_every_length(prompt: int, caching: bool) -> None:
    """They share its whole blocks but the last token's, of which they take a copy."""
    simulator = build(num_blocks=40, caching=caching, max_num_batched_tokens=64)
    simulator.submit(spec(1, PROMPT[:prompt], 6, n=3))
    simulator.turn()
    simulator.launch()
    plan = last_plan(simulator)
    assert len(plan.copies) == 2
    assert [row.start for row in plan.rows if row.index] == [prompt - 1] * 2
    assert simulator.pool.num_shared == (prompt - 1) // 4
    simulator.apply()
    simulator.drain()


def test_siblings_of_a_leader_that_ended_at_once_run_on_their_own() -> None:
    simulator = build()
    simulator.submit(spec(1, max_tokens=1, n=3))
    simulator.drain()
    assert len(simulator.records) == 3


def test_no_fork_from_a_leader_that_was_preempted_and_is_at_its_prompt_again() -> None:
    simulator = build(max_num_seqs=2, max_num_batched_tokens=6, block_size=2, caching=False)
    scheduler = simulator.scheduler
    simulator.submit(spec(9, (3,), 20, priority=9))  # keeps the second slot for now
    simulator.submit(spec(1, max_tokens=8, n=2))
    while not any(r.num_outputs for r in scheduler.unfinished() if r.key == 1):
        simulator.turn()
    leader = next(r for r in scheduler.state.running if r.key == 1)
    scheduler.state.preempt(leader)
    simulator.abort(9)
    simulator.turn()
    simulator.launch()  # the leader's last chunk leaves room for its sibling
    assert [(r.index, r.start) for r in last_plan(simulator).rows] == [(0, 6), (1, 0)]
    simulator.apply()
    simulator.drain()
    assert simulator.tally.forks == 0


# ------------------------------------------------------------ resumed streams


@pytest.mark.parametrize("held", range(13))
def test_a_broken_stream_goes_on_as_if_it_had_not(held: int) -> None:
    request = spec(1, max_tokens=12)
    outputs = Oracle(request, 0, Shape().vocab).expected
    simulator = build()
    simulator.submit(spec(2, max_tokens=12, resume=outputs[:held]))
    simulator.drain()
    assert simulator.records[2, 0].tokens == outputs[held:]
    assert simulator.records[2, 0].ended is FinishReason.LENGTH


def test_a_resumed_stream_that_held_everything_ends_without_a_step() -> None:
    request, _ = stopping_spec(1, 3)
    outputs = Oracle(request, 0, Shape().vocab).expected
    simulator = build()
    simulator.submit(replace(request, resume_token_ids=tuple(outputs)))
    simulator.drain()
    assert simulator.records[1, 0].ended is FinishReason.STOP
    assert simulator.tally.steps == 0
