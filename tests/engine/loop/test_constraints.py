"""The engine under a protocol alone: matchers of its own that know nothing of text."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.small_engine import PaddedRunner, Setup, build_core, load_model, model_config

from quire.engine.client import wire
from quire.engine.errors import ConstraintError, CorruptStateError, RequestError
from quire.engine.loop.commands import SetVocabulary, Submit
from quire.engine.loop.core import EngineCore
from quire.engine.request import (
    Constraint,
    FinishReason,
    GenerationRequest,
    Output,
    SamplingParams,
    Vocabulary,
)
from quire.engine.runner.graphs import GraphKey, SamplerKey
from quire.engine.runner.logit_edits import SlotEdits
from quire.engine.runner.masks import NO_MASK, MaskTable
from quire.engine.scheduling.matching import BeginWork, Mask, Room, Step, constrained, one_by_one
from quire.engine.scheduling.plan import Masks, PlanRow, StepPlan, StepResult

MODEL = load_model(model_config(), seed=3)
PARAMS = SamplingParams(temperature=1.0, max_tokens=20, eos_token_ids=(1,))
PATIENCE = 20.0


class Cycle:
    """Ids whose remainder by three goes round; may end after six; exhausted at `limit` tokens."""

    def __init__(self, limit: int = 1000, count: int = 0) -> None:
        self.limit, self.count = limit, count

    def mask(self) -> bytearray:
        mask = bytearray(48)
        if self.count < 12:
            for i in range(3 + self.count % 3, 384, 3):
                mask[i >> 3] |= 1 << (i & 7)
        return mask

    def accept(self, token_id: int) -> None:
        if token_id % 3 != self.count % 3:
            raise ConstraintError(f"{token_id} after {self.count}")
        self.count += 1
        if self.count == self.limit:
            raise ConstraintError("exhausted")

    def may_end(self) -> bool:
        return self.count >= 6

    def copy(self) -> "Cycle":
        return Cycle(self.limit, self.count)


class Cycles:
    """Implements Matchers. `open`: compiling waits for it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        pass

    def set_concurrent_work(self, begin: BeginWork) -> None:
        pass

    def write_to(self, room: Room) -> None:
        pass

    def advance(self, steps: Sequence[Step]) -> list[Mask | Exception]:
        return one_by_one(steps)

    def compile(self, constraint: Constraint) -> Cycle:
        assert self.open.wait(PATIENCE)
        if not constraint.text.isdigit():
            raise RequestError("constraint", "not a number")
        return Cycle(int(constraint.text))


class Slow(Cycles):
    """Its masks come when the work beside them is done."""

    def set_concurrent_work(self, begin: BeginWork) -> None:
        self.begin = begin

    def advance(self, steps: Sequence[Step]) -> list[Mask | Exception]:
        self.begin()()
        return one_by_one(steps)


def engine(setup: Setup, matchers: Cycles | None = None) -> EngineCore:
    core = build_core(*MODEL, setup)
    made = matchers or Cycles()
    return EngineCore(core.scheduler, core.runner, overlap=setup.overlap, matchers=made)


def asked(key: int, limit: str = "1000", **more: int) -> GenerationRequest:
    params = replace(PARAMS, seed=key)
    return GenerationRequest(
        key, (5, 6, 7, key + 9), params, constraint=Constraint("cycle", limit), **more
    )


def outputs(core: EngineCore) -> Iterator[Output]:
    for _ in range(4000):
        if not core.has_requests:
            return
        yield from core.step()
    raise AssertionError("it does not end")


Answers = dict[tuple[int, int], tuple[list[int], FinishReason | None]]


def run(core: EngineCore, requests: list[GenerationRequest]) -> Answers:
    found: dict[tuple[int, int], list[Output]] = {}
    for request in requests:
        for output in core.submit(request):
            found.setdefault((output.key, output.index), []).append(output)
    for output in outputs(core):
        found.setdefault((output.key, output.index), []).append(output)
    return {
        at: ([token for one in said for token in one.token_ids], said[-1].finish)
        for at, said in found.items()
    }


CROWDED = Setup(max_num_seqs=4, max_num_batched_tokens=8, num_blocks=14, overlap=True, caching=True)


def test_each_token_is_of_the_mask_and_a_complete_output_ends() -> None:
    answers = run(engine(Setup(max_num_seqs=4)), [asked(key) for key in range(4)])
    for tokens, finish in answers.values():
        body = tokens[:-1] if tokens[-1] == 1 else tokens
        assert [token % 3 for token in body] == [i % 3 for i in range(len(body))]
        assert finish is FinishReason.STOP and 6 <= len(body) <= 12


def test_an_end_that_is_wanted_most_comes_once_it_is_allowed() -> None:
    params = replace(PARAMS, logit_bias=((1, 100.0),))
    early, late = replace(asked(1), sampling=params), asked(2)
    late = replace(late, sampling=replace(params, min_tokens=9))
    answers = run(engine(Setup(max_num_seqs=2)), [early, late])
    assert [len(answers[key, 0][0]) for key in (1, 2)] == [7, 9]
    assert all(tokens[-1] == 1 for tokens, _ in answers.values())


@pytest.mark.parametrize(("padded", "matchers"), [(False, Cycles), (True, Slow)])
def test_overlapped_in_chunks_and_preempted_each_gets_what_it_gets_alone(
    padded: bool, matchers: type[Cycles]
) -> None:
    requests = [asked(key, n=2) if key == 2 else asked(key) for key in range(6)]
    free = [
        GenerationRequest(key, (4, 5, key), replace(PARAMS, seed=key, eos_token_ids=()))
        for key in range(20, 24)
    ]
    alone: Answers = {}
    for request in (*requests, *free):
        alone |= run(engine(Setup()), [request])
    core = engine(replace(CROWDED, padded=padded), matchers())
    assert run(core, [*requests, *free]) == alone
    assert core.scheduler.counters.preemptions > 0
    assert core.scheduler.pool.num_free == core.scheduler.pool.num_usable


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


def test_a_token_that_its_mask_leaves_out_is_a_fault_and_no_dead_end() -> None:
    """Whoever asked for the constraint cannot help it."""
    core = engine(Setup(max_num_seqs=2, overlap=True))
    sample = core.runner.sample
    core.runner.sample = lambda _: sample(())  # type: ignore[method-assign]
    core.submit(asked(1))
    *_, end = outputs(core)
    assert (end.finish, end.dead_end) == (FinishReason.ERROR, None) and end.error_id


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("most", "eos"), [(20, 1), (12, None)])
def test_resumed_at_every_token_it_goes_on_as_if_unbroken(
    overlap: bool, most: int, eos: int | None
) -> None:
    """Behind the last one too: where it is complete and has max_tokens, it ends as complete."""
    ends = () if eos is None else (eos,)
    params = replace(PARAMS, seed=5, max_tokens=most, eos_token_ids=ends)
    request = replace(asked(5), sampling=params)
    tokens, finish = run(engine(Setup()), [request])[5, 0]
    for cut in range(1, len(tokens) + 1):
        resumed = replace(request, resume_token_ids=tuple(tokens[:cut]))
        rest, end = run(engine(Setup(overlap=overlap)), [resumed])[5, 0]
        assert (tokens[:cut] + rest, end) == (tokens, finish)


def test_exhausted_limits_end_an_index_alone_with_an_error() -> None:
    doomed, fine = asked(1, "4"), asked(2)
    answers = run(engine(Setup(max_num_seqs=2, overlap=True)), [doomed, fine])
    assert answers[1, 0][1] is FinishReason.ERROR and len(answers[1, 0][0]) == 3
    assert answers[2, 0] == run(engine(Setup()), [fine])[2, 0]


def test_a_steps_tokens_are_taken_in_together() -> None:
    """Each turn asks once for all rows under constraints, whatever is beside them."""
    matchers = Cycles()
    asked_for: list[int] = []

    def advance(steps: Sequence[Step]) -> list[Mask | Exception]:
        asked_for.append(len(steps))
        return one_by_one(steps)

    matchers.advance = advance  # type: ignore[method-assign]
    free = GenerationRequest(9, (5, 6), replace(PARAMS, eos_token_ids=()))
    core = engine(Setup(max_num_seqs=5), matchers)
    for request in (asked(key) for key in range(4)):
        core.scheduler.submit(request, constrained(Cycle(), request))
    answers = run(core, [free])
    del answers[9, 0]
    taken = [len(tokens) - (tokens[-1] == 1) for tokens, _ in answers.values()]
    assert sum(asked_for) == sum(taken) and len(asked_for) == max(taken)
    for request in (asked(key) for key in range(4)):
        assert answers[request.key, 0] == run(engine(Setup()), [request])[request.key, 0]


def test_matchers_that_fail_together_end_their_outputs_and_no_others() -> None:
    matchers = Cycles()

    def advance(steps: Sequence[Step]) -> list[Mask | Exception]:
        raise OSError(f"no threads for {len(steps)}")

    matchers.advance = advance  # type: ignore[method-assign]
    free = GenerationRequest(9, (5, 6), replace(PARAMS, eos_token_ids=()))
    core = engine(Setup(max_num_seqs=5, overlap=True), matchers)
    answers = run(core, [asked(1), asked(2, n=2), free])
    assert [finish for (key, _), (_, finish) in sorted(answers.items()) if key < 9] == [
        FinishReason.ERROR
    ] * 3
    assert answers[9, 0] == run(engine(Setup()), [free])[9, 0]


def test_what_cannot_be_compiled_ends_with_an_error_and_leaves_nothing() -> None:
    core = engine(Setup())
    assert run(core, [asked(1, "no", n=2)]) == {
        (1, 0): ([], FinishReason.ERROR),
        (1, 1): ([], FinishReason.ERROR),
    }
    assert not core.scheduler.knows(1)


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


def test_one_mask_is_for_the_logits_of_one_row() -> None:
    def row(slot: int, num_tokens: int, samples: bool = True) -> PlanRow:
        return PlanRow(slot, 0, 0, slot, 0, num_tokens, samples)

    rows = (row(4, 1), row(2, 1), row(5, 3, samples=False), row(1, 7))
    plan = StepPlan(1, rows, (), (), (), 2, 12, (4, 1))
    table = MaskTable(4, 64, torch.device("cpu"))
    table.put([NO_MASK, NO_MASK, NO_MASK, bytes(8)])
    table.put(SlotEdits(64).masks(plan, ((4, bytes(8)), (1, b"\1" * 8))))
    first, none, second, last = table.of.tolist()
    assert (none, last) == (-1, -1)
    assert table.words[[first, second]].tolist() == [[0, 0], [0x01010101] * 2]


def test_constraints_and_their_vocabulary_cross_to_another_process() -> None:
    commands = (
        Submit(replace(asked(1), constraint=Constraint("regex", "é+", "<a>", "</a>"))),
        SetVocabulary(Vocabulary("{}", 10, (1, 2))),
    )
    for command in commands:
        (message,) = wire.Frames().feed(wire.frame(wire.pack_command(command)))
        assert wire.unpack_command(message) == command
