"""A part of the scored evaluation, through Quire itself, and the counting that it rests on."""

from collections.abc import Sequence
from pathlib import Path

import agent
import pytest
from answerers import Quire, Transformers
from cells import Case, Cell, Maker
from corpus import Message
from draw import Draw
from evaluate import SEED, STOP_FLOOR, Comparison, Evaluation, compare, repeats_thrice, wilson
from rows import Encoder

CASES = {"repeat": 12, "recall": 6, "sums": 30, "counting": 20, "listing": 20}
OTHERS = 12
COMPARED = ("repeat alnum 33-100", "sums", "counting")


def _small(cell: Cell, part: int) -> int:
    return CASES.get(cell.name.split()[0], OTHERS) // part


@pytest.fixture(scope="module", params=[5, pytest.param(1, marks=pytest.mark.long)])
def part(request: pytest.FixtureRequest) -> int:
    """Which part of CASES is asked for."""
    return int(request.param)


class _Noted:
    """Notes what is asked, and says nothing."""

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []
        self.limits: list[int] = []

    def generate(
        self, prompts: Sequence[list[int]], limits: Sequence[int], temperature: float = 0.0
    ) -> list[list[int]]:
        assert temperature == 0
        self.prompts += prompts
        self.limits += limits
        return [[] for _ in prompts]


@pytest.fixture(scope="module")
def evaluation(shipped: Path, encoder: Encoder, part: int) -> Evaluation:
    """Quire's answers to a part of every cell, which share their steps."""
    noted = _Noted()
    _ask_all(Evaluation(noted, encoder, lambda _line: None), part)
    with Quire(shipped) as engine:
        answers = engine.generate(noted.prompts, noted.limits)
        asked = Evaluation(_Parrot(answers), encoder, lambda _line: None)
        _ask_all(asked, part)
        asked.engine = engine
        asked.results.append(asked.agent())
    return asked


def _ask_all(evaluation: Evaluation, part: int) -> None:
    for cell in Maker(evaluation.encoder.tokenizer).cells():
        evaluation.cell(cell, SEED, _small(cell, part))


def test_every_cell_may_reach_its_floor(evaluation: Evaluation) -> None:
    """What was measured must not refute the floor; the model card has the full counts."""
    for result in evaluation.results:
        if result.floor is not None:
            assert wilson(result.right, result.count)[1] >= result.floor, result
    repeated = [result for result in evaluation.results if "repeat" in result.cell]
    assert len(repeated) == 9
    assert sum(result.count - result.right for result in repeated) <= 4


def test_the_agent_completes_nineteen_of_twenty_tasks(evaluation: Evaluation) -> None:
    assert evaluation.results[-1].count == 20 and evaluation.results[-1].right >= 19


def test_a_task_is_completed_only_through_the_tools() -> None:
    def wise(texts: Sequence[str]) -> list[str]:
        """Says each answer without a call."""
        wanted = {task.question: " ".join(task.wants) for task in agent.TASKS}
        return [next(w for q, w in wanted.items() if f"user\n{q}<" in text) for text in texts]

    def wild(texts: Sequence[str]) -> list[str]:
        return ['<tool_call>\n{"name": "no_such", "arguments": {}}\n</tool_call>' for _ in texts]

    for say in (wise, wild, lambda texts: [""] * len(texts)):
        assert not any(agent.completed(say))


def test_the_calculator_takes_sums_alone() -> None:
    assert agent.calculate("(12 + 7) * 31 - 5") == 584
    for text in ("2 ** 999", "__import__('os')", "1.5 + 2", "True + 1", "2 +"):
        with pytest.raises(ValueError, match="not a sum"):
            agent.calculate(text)


def test_a_removed_fact_is_not_known(evaluation: Evaluation) -> None:
    removed = [r for r in evaluation.results if "removed" in r.cell]
    assert len(removed) == 3 and all(r.right <= r.count // 3 for r in removed)


def test_answers_end_by_themselves(evaluation: Evaluation) -> None:
    stopped = evaluation.stopping()
    assert wilson(stopped.right, stopped.count)[1] >= STOP_FLOOR


def test_transformers_gives_the_same_answers(
    evaluation: Evaluation, shipped: Path, encoder: Encoder, part: int
) -> None:
    with Transformers(shipped) as engine:
        theirs = Evaluation(engine, encoder, lambda _line: None)
        for cell in Maker(encoder.tokenizer).cells():
            if cell.name in COMPARED:
                theirs.cell(cell, SEED, _small(cell, part))
        counted = compare(theirs, evaluation, engine.gap)
    assert counted.answers == 12 // part + 30 // part + 20 // part
    assert counted.unexplained == 0


def test_stories_have_no_loop(shipped: Path, encoder: Encoder) -> None:
    with Quire(shipped) as engine:
        told = Evaluation(engine, encoder, lambda _line: None).stories(SEED, count=20)
    assert told.right == told.count == 20


class _Parrot:
    """Answers each prompt with given ids."""

    def __init__(self, answers: list[list[int]]) -> None:
        self.answers = iter(answers)

    def generate(
        self, prompts: Sequence[list[int]], limits: Sequence[int], temperature: float = 0.0
    ) -> list[list[int]]:
        del limits, temperature
        return [next(self.answers) for _ in prompts]


def _told(encoder: Encoder, *answers: list[int]) -> Evaluation:
    cell = Cell("sums", 0.9, lambda _draw: Case([Message("user", "1 + 1 =")], "2"))
    told = Evaluation(_Parrot(list(answers)), encoder, lambda _line: None)
    told.cell(cell, 0, len(answers))
    return told


def test_only_a_right_and_ended_answer_counts(encoder: Encoder) -> None:
    two, end = encoder.tokenizer.encode("2").ids, encoder.im_end
    told = _told(encoder, [*two, end], [*two], [*two, *two, end], [end], [])
    assert told.results[0].right == 1
    assert told.stopping().right == 3


def test_differences_are_ties_only_where_the_logits_are_near(encoder: Encoder) -> None:
    one, other = _told(encoder, [5, 6, 2], [5, 7, 2]), _told(encoder, [5, 6, 2], [5, 8, 2])
    asked: list[list[int]] = []

    def gap(ids: list[int]) -> float:
        asked.append(ids)
        return 1e-5

    assert compare(one, other, gap) == Comparison(answers=2, ties=1, unexplained=0)
    assert asked == [[*one.prompts["sums"][1], 5]]
    assert compare(one, other, lambda _ids: 1e-3).unexplained == 1


def test_loops_are_found() -> None:
    assert repeats_thrice([9, *[1, 2, 3, 4, 5, 6, 7, 8] * 3])
    assert not repeats_thrice([1, 2, 3, 4, 5, 6, 7, 8] * 2)
    assert not repeats_thrice(list(range(100)))


def test_wilson_intervals() -> None:
    low, high = wilson(190, 200)
    assert low == pytest.approx(0.9104, abs=1e-3) and high == pytest.approx(0.9726, abs=1e-3)
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == pytest.approx(1.0)


def test_cases_depend_on_their_seed_alone(encoder: Encoder) -> None:
    for cell in Maker(encoder.tokenizer).cells()[::5]:
        first, second = list(cell.cases(1, 2)), list(cell.cases(1, 2))
        assert first == second and first != list(cell.cases(2, 2))
        assert cell.make(Draw(1, cell.name, 1)) == first[1]
