"""A check passes its exercise's solution, and names what is wrong with the hole and other fills.

Exercises are taken as they are handed out: those in the chapters' folders are the learner's.
"""

import os
import shutil
import sys
from pathlib import Path

import chapters
import check
import pytest
from checking import NotYet
from support import programs
from support.patience import PATIENCE
from support.wrong_fills import FILLS

ROOT = chapters.COURSE.parent


def _filled(number: int, body: str) -> str:
    """The exercise with this in its hole."""
    before, rest = chapters.hole(number).split(chapters.HOLE_BEGINS)
    _, after = rest.split(chapters.HOLE_ENDS)
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return before + chapters.HOLE_BEGINS + lines + chapters.HOLE_ENDS + after


def _word_on(number: int, source: str, folder: Path) -> str | None:
    """What the check says of an exercise; None if it is right."""
    file = folder / "exercise.py"
    file.write_text(source, encoding="utf-8")
    try:
        check.look_at(number, file)
    except NotYet as word:
        return str(word)
    return None


def test_a_file_is_loaded_as_it_is_written_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "exercise.py"
    for value in (1, 2):
        file.write_text(f"value = {value}\n")
        os.utime(file, (1e9, 1e9))  # within one second, as long as before
        assert chapters.load(file).value == value


@pytest.mark.parametrize("number", chapters.numbers())
def test_a_hole_is_told_from_a_solution(number: int, tmp_path: Path) -> None:
    word = _word_on(number, chapters.hole(number), tmp_path)
    assert word is not None and "the hole is still there" in word
    solution = chapters.solution(number).read_text(encoding="utf-8")
    assert _word_on(number, solution, tmp_path) is None
    for mark in (chapters.HOLE_BEGINS, chapters.HOLE_ENDS):
        assert solution.count(mark) == 1


def test_a_learners_fill_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed_out, solution = chapters.hole(1), chapters.solution(1)
    for name in (chapters.folder(1).name, "solutions"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").touch()
    (tmp_path / chapters.folder(1).name / "exercise.py").write_text("filled = True\n")
    shutil.copy(solution, tmp_path / "solutions")
    monkeypatch.setattr(chapters, "COURSE", tmp_path)
    assert chapters.hole(1) == handed_out


@pytest.mark.skipif(not os.environ.get("CI"), reason="in a clone exercises are the learner's")
@pytest.mark.parametrize("number", chapters.numbers())
def test_what_is_handed_out_is_the_solution_with_its_hole_open(number: int) -> None:
    exercise = (chapters.folder(number) / "exercise.py").read_text(encoding="utf-8")
    assert exercise == chapters.hole(number)


@pytest.mark.parametrize("number", chapters.numbers())
def test_each_misconception_is_named(number: int, tmp_path: Path) -> None:
    fills = FILLS[number]
    assert len(fills) >= 3
    said = {
        fill.name: _word_on(number, _filled(number, fill.body), tmp_path) or "right"
        for fill in fills
    }
    assert all(fill.named in said[fill.name] for fill in fills), said
    assert len({word.split(" (seen in")[0] for word in said.values()}) == len(fills), said


@pytest.mark.parametrize("number", chapters.numbers())
def test_what_is_wrong_in_another_way_is_told_by_its_difference(
    number: int, tmp_path: Path
) -> None:
    word = _word_on(number, _filled(number, "return None"), tmp_path)
    assert word is not None and "expected" in word
    word = _word_on(number, _filled(number, "return 1 // 0"), tmp_path)
    line = _filled(number, "return 1 // 0").split("return 1 // 0")[0].count("\n") + 1
    assert word == (
        f"your code stopped in line {line}, `return 1 // 0`, with ZeroDivisionError: "
        "integer division or modulo by zero"
    )


def test_the_command_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = ROOT / "course" / "check.py"
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        done = programs.run([sys.executable, program, *words], timeout=PATIENCE)
        return done.returncode, done.stdout, done.stderr

    assert run("1", str(chapters.solution(1))) == (0, "chapter 1: right\n", "")
    hole = tmp_path / "hole.py"
    hole.write_text(chapters.hole(1), encoding="utf-8")
    said = "chapter 1: not yet: the hole is still there: attention\n"
    assert run("1", str(hole)) == (1, said, "")
    code, said, error = run("1")  # the learner's own
    assert code in (0, 1) and said.startswith("chapter 1: ") and error == ""
    code, said, error = run("99")
    assert (code, said) == (2, "")
    assert error.startswith("check: chapter 99: not there; there are 1")
    asks = "check: which chapter? type: python course/check.py NUMBER [FILE]\n"
    assert run() == run("one") == (2, "", asks)
