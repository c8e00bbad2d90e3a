"""The engine under a protocol alone: matchers of its own that know nothing of text."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from support.cycle_matchers import PARAMS, Answers, Cycle, Cycles, Slow, asked, engine, outputs, run
from support.small_engine import Setup

from quire.engine.client import wire
from quire.engine.loop.commands import SetVocabulary, Submit
from quire.engine.request import (
    Constraint,
    FinishReason,
    GenerationRequest,
    Vocabulary,
)
from quire.engine.runner.logit_edits import SlotEdits
from quire.engine.runner.masks import NO_MASK, MaskTable
from quire.engine.scheduling.matching import Mask, Step, constrained, one_by_one
from quire.engine.scheduling.plan import PlanRow, StepPlan

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
