"""A chapter is whole, its figures are those of its run, and what it names in Quire is there."""

import ast
import json
import re
from pathlib import Path

import chapters
import draw
import lab
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


@pytest.mark.long
@pytest.mark.parametrize("number", chapters.numbers())
def test_its_figures_are_those_of_a_run(number: int) -> None:
    """Counts are what a run gives today; times are what they were when they were measured."""
    folder = chapters.folder(number)
    kept = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    fresh = json.loads(json.dumps(chapters.load(folder / "run.py").counts()))
    assert fresh.keys() <= kept.keys()
    assert {key: kept[key] for key in fresh} == fresh
    assert kept["machine"]
    for text in draw.texts(folder):
        said = text.read_text(encoding="utf-8")
        assert draw.with_table(said, kept) == said, f"{text}: run course/draw.py {number}"
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
