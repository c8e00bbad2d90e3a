"""The scheduler's rules, one by one, on the simulator (which checks all its invariants besides)."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from support.simulator import Shape, Simulator
from support.toy_device import EOS, Oracle

from quire.engine.errors import RequestError
from quire.engine.request import FinishReason, GenerationRequest, SamplingParams
from quire.engine.scheduling.plan import StepPlan, StepResult
from quire.engine.scheduling.request import Request, Status
from quire.engine.scheduling.waiting_queue import AGEING

PROMPT = (1, 2, 1, 1, 2, 2, 1, 2, 1, 2)


def spec(
    key: int,
    prompt: Sequence[int] = PROMPT,
    max_tokens: int = 4,
    *,
    n: int = 1,
    priority: int = 0,
    client: str = "",
    resume: Sequence[int] = (),
    salt: bytes = b"",
    **sampling: object,
) -> GenerationRequest:
    params = SamplingParams(max_tokens=max_tokens, **sampling)  # type: ignore[arg-type]
    return GenerationRequest(key, tuple(prompt), params, n, priority, salt, tuple(resume), client)


def build(**shape: object) -> Simulator:
    return Simulator(replace(Shape(depth=0), **shape))  # type: ignore[arg-type]


def last_plan(simulator: Simulator) -> StepPlan:
    return simulator.in_flight[-1][0]


def rows_of(plan: StepPlan) -> list[tuple[int, int]]:
    """(key, tokens) of each row."""
    return [(row.key, row.num_tokens) for row in plan.rows]


def client_of(simulator: Simulator) -> str:
    """Whose the first row of the last plan is."""
    row = last_plan(simulator).rows[0]
    return simulator.records[row.key, row.index].spec.client


def stopping_spec(key: int, outputs: int, **more: object) -> tuple[GenerationRequest, int]:
    """A request that meets EOS after at least `outputs` tokens, well before max_tokens."""
    for seed in range(1000):
        candidate = spec(key, max_tokens=24, seed=seed, eos_token_ids=(EOS,), **more)  # type: ignore[arg-type]
        length = len(Oracle(candidate, 0, Shape().vocab).expected)
        if outputs <= length <= 12:
            return candidate, length
    raise AssertionError("no seed found")


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
    leader = next(r for r in scheduler.roster.running if r.key == 1)
    scheduler.roster.preempt(leader)
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
