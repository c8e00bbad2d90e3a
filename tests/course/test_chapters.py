"""A chapter is whole, its figures are those of its run, and what it names in Quire is there."""

import ast
import json
import re
from pathlib import Path

import chapters
import lab
import measure
import pytest

ROOT = chapters.COURSE.parent
NAMED = re.compile(r"^- `([a-z_/0-9]+\.py)`, `([A-Za-z_0-9.]+)`", re.MULTILINE)


def _names(path: Path) -> set[str]:
    """All that a file defines at its top and in its classes: `f`, `C`, `C.method`, `CONSTANT`."""
    found: set[str] = set()

    def take(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                take(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else []
            found.update(prefix + t.id for t in targets if isinstance(t, ast.Name))

    take(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


@pytest.mark.parametrize("number", chapters.numbers())
def test_it_ends_in_quires_own_code(number: int) -> None:
    text = (chapters.folder(number) / "README.md").read_text(encoding="utf-8")
    named = NAMED.findall(text.split("## In Quire's own code")[1])
    assert len(named) >= 3
    assert len(named) == text.split("## In Quire's own code")[1].count("\n- ")
    missing = [(file, name) for file, name in named if name not in _names(ROOT / file)]
    assert not missing


@pytest.mark.parametrize("number", chapters.numbers())
def test_its_texts_show_the_figures_of_its_run(number: int) -> None:
    """That a run gives these figures today, its notebook shows."""
    folder = chapters.folder(number)
    kept = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    assert kept["machine"]
    notebook = (folder / "notebook.py").read_text(encoding="utf-8")
    assert f'lab.figures("{folder.name}")' in notebook
    for text in measure.texts(folder):
        said = text.read_text(encoding="utf-8")
        assert measure.with_table(said, kept) == said, f"{text}: run course/measure.py {number}"
        assert "(picture.svg)" in said


@pytest.mark.parametrize("number", chapters.numbers())
def test_it_is_whole(number: int) -> None:
    folder = chapters.folder(number)
    for name in ("README.md", "notebook.py", "run.py", "picture.svg", "exercise.py", "checks.py"):
        assert (folder / name).stat().st_size > 0, name
    answers = (chapters.COURSE / "solutions" / "answers.md").read_text(encoding="utf-8")
    text = (folder / "README.md").read_text(encoding="utf-8")
    questions = re.findall(r"^\d\. ", text.split("## Five questions")[1], re.MULTILINE)
    title = text.splitlines()[0]
    answered = answers.split(f"#{title}\n")[1].split("\n## ")[0]
    assert len(questions) == len(re.findall(r"^\d\. ", answered, re.MULTILINE)) == 5
    assert f"({folder.name}/README.md)" in (chapters.COURSE / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("kept", "fresh", "equal"),
    [
        ([1, "a", "0.825"], [1, "a", "0.831"], True),
        ([1, "a", "0.825"], [1, "a", "0.845"], False),
        ({"x": "14%"}, {"x": "15%"}, True),
        ({"x": "14%"}, {"x": "16%"}, False),
        ([3], [4], False),
        ([3], [3, 3], False),
        ({"x": 1}, {"y": 1}, False),
        (["fox"], ["crow"], False),
    ],
)
def test_figures_that_differ_by_more_than_rounding_are_seen(
    kept: object, fresh: object, equal: bool
) -> None:
    assert lab.alike(kept, fresh) is equal


def test_a_table_is_printed_as_wide_as_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    lab.show([["turn", "found"], ["`1`", 1084], ["**all**", "0%"]])
    assert capsys.readouterr().out == "turn  found\n   1   1084\n all     0%\n"


def test_links_lead_somewhere() -> None:
    for text in sorted(chapters.COURSE.rglob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text.read_text(encoding="utf-8")):
            assert "://" in link or (text.parent / link).exists(), f"{text}: {link}"


def test_what_is_missing_is_said_with_what_to_type() -> None:
    assert lab.missing_word(("torch",)) is None
    word = lab.missing_word(("torch", "no_such_library"))
    assert word == f"no_such_library cannot be imported: type pip install -e '.[course]' in {ROOT}"
    with pytest.raises(SystemExit, match="no_such_library cannot be imported"):
        lab.need("no_such_library")
