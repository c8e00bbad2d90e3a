"""The scheduler's rules, one by one, on the simulator (which checks all its invariants besides)."""

from dataclasses import replace

import pytest
from support.scheduler_cases import PROMPT, build, last_plan, spec, stopping_spec
from support.simulator import Simulator

from quire.engine.errors import RequestError
from quire.engine.request import FinishReason, GenerationRequest
from quire.engine.scheduling.plan import StepPlan, StepResult
from quire.engine.scheduling.waiting_queue import AGEING


def rows_of(plan: StepPlan) -> list[tuple[int, int]]:
    """(key, tokens) of each row."""
    return [(row.key, row.num_tokens) for row in plan.rows]


def client_of(simulator: Simulator) -> str:
    """Whose the first row of the last plan is."""
    row = last_plan(simulator).rows[0]
    return simulator.records[row.key, row.index].spec.client


# ------------------------------------------------------------ admission


@pytest.mark.parametrize(
    ("field", "bad"),
    (
        ("prompt", spec(1, ())),
        ("max_tokens", spec(1, max_tokens=0)),
        ("max_tokens", spec(1, PROMPT, 40)),
        ("max_tokens", spec(1, (1,) * 60, 1)),
        ("resume_token_ids", spec(1, max_tokens=2, resume=(1, 1, 1))),
        ("stop_token_ids", spec(1, stop_token_ids=tuple(range(200)))),
        ("n", spec(1, n=0)),
        ("n", spec(1, n=2, resume=(1,))),
    ),
)
def test_what_can_never_run_is_refused_by_field_and_leaves_no_state(
    field: str, bad: GenerationRequest
) -> None:
    simulator = build()
    for call in (simulator.scheduler.check, simulator.scheduler.submit):
        with pytest.raises(RequestError) as caught:
            call(bad)
        assert caught.value.field == field
    assert not simulator.scheduler.has_requests
    assert simulator.scheduler.schedule() is None


def test_the_refusal_of_what_the_cache_cannot_hold_names_both_numbers() -> None:
    simulator = build(num_blocks=4, block_size=4, max_model_len=48)
    simulator.scheduler.check(spec(1, (1,) * 10, 3))  # 12 tokens are computed, the 13th is not
    with pytest.raises(RequestError, match=r"10\).*4\).*14 tokens need 4 cache blocks.*has 3"):
        simulator.scheduler.check(spec(1, (1,) * 10, 4))


@pytest.mark.parametrize(
    ("tokens", "blocks", "end"),
    ((10, 13, ": at most 38 fit"), (10, 5, ": at most 7 fit"), (48, 13, "")),
)
def test_the_refusal_of_more_than_max_model_len_says_what_is_left(
    tokens: int, blocks: int, end: str
) -> None:
    simulator = build(num_blocks=blocks, block_size=4, max_model_len=48)
    with pytest.raises(RequestError, match=rf"exceed max_model_len = 48{end}$"):
        simulator.scheduler.check(spec(1, (1,) * tokens, 40))
    if end:
        simulator.scheduler.check(spec(1, (1,) * tokens, int(end.split()[3])))


def test_priority_goes_first_then_arrival() -> None:
    simulator = build(max_num_seqs=1, max_num_batched_tokens=64)
    for key, priority in ((1, 0), (2, 0), (3, 2), (4, 1)):
        simulator.submit(spec(key, max_tokens=1, priority=priority))
    order = []
    while simulator.open:
        simulator.launch()
        order.append(last_plan(simulator).rows[0].key)
        simulator.apply()
    assert order == [3, 4, 1, 2]


def test_every_few_admissions_the_longest_waiting_goes_whatever_its_rank() -> None:
    simulator = build(max_num_seqs=1, max_num_batched_tokens=64)
    simulator.submit(spec(1, max_tokens=1, priority=-5))
    served = []
    for key in range(2, 2 + AGEING):
        simulator.submit(spec(key, max_tokens=1, priority=1))
        simulator.launch()
        served.append(last_plan(simulator).rows[0].key)
        simulator.apply()
    assert served.index(1) == AGEING - 1
    simulator.drain()


def test_clients_share_by_tokens_not_by_number_of_requests() -> None:
    simulator = build(max_num_seqs=1, max_num_batched_tokens=64)
    for key in range(1, 7):
        simulator.submit(spec(key, (key,) * 10, max_tokens=1, client="many"))
    for key in (7, 8):
        simulator.submit(spec(key, (key,) * 10, max_tokens=1, client="few"))
    order = []
    while simulator.open:
        simulator.launch()
        order.append(client_of(simulator))
        simulator.apply()
    assert order[:4] == ["many", "few", "many", "few"]


def test_a_client_that_was_idle_neither_owes_nor_owns() -> None:
    simulator = build(max_num_seqs=1, max_num_batched_tokens=64)
    for key in range(1, 7):
        simulator.submit(spec(key, (key,) * 10, max_tokens=1, client="busy"))
    for _ in range(3):
        simulator.turn()
    for key in range(11, 15):
        simulator.submit(spec(key, (key,) * 10, max_tokens=1, client="new"))
    order = []
    while simulator.open:
        simulator.launch()
        order.append(client_of(simulator))
        simulator.apply()
    assert order[:4] == ["busy", "new", "busy", "new"], "thirty tokens are not made up for"


# ------------------------------------------------------------ planning


def test_decode_rows_ride_in_every_step_beside_a_chunked_prompt() -> None:
    simulator = build(max_num_batched_tokens=8, num_blocks=40)
    simulator.submit(spec(1, (1, 2), 12, ignore_eos=True))
    simulator.turn()
    simulator.submit(spec(2, (2,) * 30, 2))
    for chunk in (7, 7, 7, 7, 2):
        simulator.launch()
        assert rows_of(last_plan(simulator)) == [(1, 1), (2, chunk)]
        assert last_plan(simulator).is_mixed
        simulator.apply()
    simulator.drain()


def test_decode_rows_come_longest_first_and_keep_their_order_from_step_to_step() -> None:
    simulator = build(num_blocks=60)
    for key, length in enumerate((3, 9, 5, 9), 1):
        simulator.submit(spec(key, (1,) * length, 6, ignore_eos=True))
    simulator.turn()
    for _ in range(4):
        simulator.launch()
        assert [row.key for row in last_plan(simulator).rows] == [2, 4, 3, 1]
        simulator.apply()
    simulator.drain()


def test_two_phase_holds_decode_back_while_there_is_a_prompt() -> None:
    simulator = build(max_num_batched_tokens=8, num_blocks=40, two_phase=True)
    simulator.submit(spec(1, (1, 2), 12))
    simulator.turn()
    simulator.submit(spec(2, (2,) * 30, 3))
    for rows in ([(2, 8)], [(2, 8)], [(2, 8)], [(2, 6)], [(2, 1), (1, 1)]):
        simulator.launch()
        assert rows_of(last_plan(simulator)) == rows
        simulator.apply()
    simulator.drain()


def test_steps_are_planned_ahead_of_results_and_never_past_max_tokens() -> None:
    simulator = build(depth=3)
    simulator.submit(spec(1, max_tokens=3))
    for _ in range(3):
        simulator.launch()
        assert simulator.scheduler.num_in_flight == len(simulator.in_flight)
    assert simulator.scheduler.schedule() is None, "three tokens are on their way"
    simulator.drain()
    assert simulator.tally.steps == 3
    assert simulator.scheduler.counters.discarded == 0


def test_eos_is_noticed_late_and_what_came_after_it_is_discarded() -> None:
    request, length = stopping_spec(1, 3)
    simulator = build(depth=2)
    simulator.submit(request)
    simulator.drain()
    record = simulator.records[1, 0]
    assert record.ended is FinishReason.STOP and len(record.tokens) == length
    assert simulator.scheduler.counters.discarded == 2
    assert simulator.scheduler.counters.generated == length + 2


def test_an_ending_id_does_not_end_before_min_tokens() -> None:
    request, length = stopping_spec(1, 2)
    later = replace(request, sampling=replace(request.sampling, min_tokens=length + 1))
    simulator = build()
    simulator.submit(later)
    simulator.drain()
    assert len(simulator.records[1, 0].tokens) > length


def test_results_must_come_in_the_order_of_the_plans() -> None:
    simulator = build(depth=2)
    simulator.submit(spec(1))
    simulator.launch()
    simulator.launch()
    with pytest.raises(ValueError, match="step 2 is not the oldest in flight"):
        simulator.scheduler.apply(last_plan(simulator), StepResult([[1]]))
