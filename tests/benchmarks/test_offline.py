"""Figures that no measurement can give are taken again."""

from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import offline as module  # type: ignore[import-not-found]

    return module


def test_figures_below_the_floor_are_taken_again(offline: ModuleType) -> None:
    figures = iter([0.0, 0.0, 2.9, 2.1, 2.8, 3.0])
    workloads = offline.Workloads(None, runs=3)
    assert workloads._repeat(lambda: next(figures), 2.2) == [2.9, 2.8, 3.0]


def test_where_most_lie_below_it_there_is_no_result(offline: ModuleType) -> None:
    with pytest.raises(offline.BelowFloorError, match=r"floor of 2\.2"):
        offline.Workloads(None, runs=3)._repeat(lambda: 2.0, 2.2)


def test_a_rested_prompt_comes_after_hits(
    offline: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def timed(_engine: object, asks: list[object]) -> float:
        asked.append(id(asks))
        return float(len(asked))

    monkeypatch.setattr(offline, "timed", timed)
    workloads = offline.Workloads(None, runs=1)
    assert workloads.first_token(offline.HIT) == [6000.0]  # the second of the third round
    assert len(asked) == 6
    asked.clear()
    assert workloads.first_token(offline.RESTED) == [19_000.0]
    assert len(asked) == 3 * (1 + 8)
    asked.clear()
    assert workloads.first_token(offline.SEVERAL) == [103.5e3]  # the middle of 84 to 123
    assert len(asked) == 3 * (1 + 40)


def test_a_workload_without_a_figure_ends_no_other_and_is_told(
    offline: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    report = offline.Report("quire", offline.Card("a card", 1.0, 1.0), None)
    report.miss("0.6B decode-b64: most figures lie below their floor of 2.2")
    report.note("0.6B", "decode-b256", [9.0], "ms", 8.0)
    with pytest.raises(SystemExit, match=r"no figure of 0\.6B decode-b64"):
        report.show()
    assert "decode-b256" in capsys.readouterr().out
