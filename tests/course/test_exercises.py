"""A check passes its exercise's solution, and names what is wrong with the hole and other fills."""

import subprocess
import sys
from pathlib import Path

import chapters
import check
import pytest
from checking import NotYet
from support.patience import PATIENCE
from support.wrong_fills import FILLS

ROOT = chapters.COURSE.parent


def _exercise(number: int) -> str:
    return (chapters.folder(number) / "exercise.py").read_text(encoding="utf-8")


def _filled(number: int, body: str) -> str:
    """The exercise with this in its hole."""
    before, rest = _exercise(number).split(chapters.HOLE_BEGINS)
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


@pytest.mark.parametrize("number", chapters.numbers())
def test_a_hole_is_told_from_a_solution(number: int, tmp_path: Path) -> None:
    word = _word_on(number, _exercise(number), tmp_path)
    assert word is not None and "the hole is still there" in word
    solution = chapters.solution(number).read_text(encoding="utf-8")
    assert _word_on(number, solution, tmp_path) is None
    hole, filled = _exercise(number), solution
    for mark in (chapters.HOLE_BEGINS, chapters.HOLE_ENDS):
        assert hole.count(mark) == filled.count(mark) == 1
    assert hole.split(chapters.HOLE_BEGINS)[0] == filled.split(chapters.HOLE_BEGINS)[0]
    assert hole.split(chapters.HOLE_ENDS)[1] == filled.split(chapters.HOLE_ENDS)[1]


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
    assert word == ("your code stopped with ZeroDivisionError: integer division or modulo by zero")


def test_the_command_says_so_in_one_line(tmp_path: Path) -> None:
    program = ROOT / "course" / "check.py"

    def run(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, program, *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            cwd=tmp_path,
        )
        return done.returncode, done.stdout, done.stderr

    assert run("1", str(chapters.solution(1))) == (0, "chapter 1: right\n", "")
    assert run("1") == (1, "chapter 1: not yet: the hole is still there: attention\n", "")
    code, said, error = run("99")
    assert (code, said) == (2, "")
    assert error.startswith("check: chapter 99: not there; there are 1")
    asks = "check: which chapter? type: python course/check.py NUMBER [FILE]\n"
    assert run() == run("one") == (2, "", asks)
