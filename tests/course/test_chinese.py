"""Chinese pages stand beside the English ones: same tree, same code, same figures, same names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHINESE = sorted(
    path
    for path in (*ROOT.glob("README.zh.md"), *(ROOT / "course").rglob("README.zh.md"))
    if path.is_file()
)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
FIGURES = re.compile(r"<!-- (?:run|measured): begin.*?end -->", re.DOTALL)
HAN = re.compile(r"[\u4e00-\u9fff]")
LEAST = 0.6  # of letters and digits outside of code, links and figures


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _beside(path: Path) -> Path:
    """The English page of a Chinese one."""
    return path.with_name("README.md")


def _prose(text: str) -> str:
    """A page without code, figures, and where its links lead."""
    text = FENCED.sub("", FIGURES.sub("", text))
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "", text))


def _headings(text: str) -> list[str]:
    return re.findall(r"^#+(?= )", FENCED.sub("", text), re.MULTILINE)


def test_the_readme_and_the_first_three_chapters_are_there() -> None:
    names = {path.parent.relative_to(ROOT).as_posix() for path in CHINESE}
    assert names >= {
        ".",
        "course",
        "course/01-one-token",
        "course/02-keys-and-values-kept",
        "course/03-pages",
    }


@pytest.mark.parametrize("path", CHINESE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_has_the_tree_the_code_and_the_figures_of_the_english_one(path: Path) -> None:
    chinese, english = _text(path), _text(_beside(path))
    assert _headings(chinese) == _headings(english)
    assert FENCED.findall(chinese) == FENCED.findall(english)
    assert FIGURES.findall(chinese) == FIGURES.findall(english)
    named = re.compile(r"^- `([^`]+)`, `([^`]+)`", re.MULTILINE)
    assert named.findall(chinese) == named.findall(english)
    numbered = re.compile(r"^\d\. ", re.MULTILINE)
    assert numbered.findall(chinese) == numbered.findall(english)


@pytest.mark.parametrize("path", CHINESE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_is_chinese(path: Path) -> None:
    letters = [character for character in _prose(_text(path)) if character.isalnum()]
    share = sum(bool(HAN.match(character)) for character in letters) / len(letters)
    assert share >= LEAST, f"{share:.0%} of its letters"


@pytest.mark.parametrize("path", CHINESE, ids=lambda path: str(path.relative_to(ROOT)))
def test_numbers_in_the_prose_are_those_of_the_english_page(path: Path) -> None:
    """Of three digits or more, or with a fraction: a figure that one page alone has is stale."""
    number = re.compile(
        r"(?<![\w.])\d{1,3}(?:,\d{3})+|(?<![\w.])\d+\.\d+(?![\w.])|(?<![\w.])\d{3,}"
    )
    chinese, english = (set(number.findall(_prose(_text(page)))) for page in (path, _beside(path)))
    assert chinese == english


@pytest.mark.parametrize("path", CHINESE, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_lead_to_one_another(path: Path) -> None:
    assert "[English](README.md)" in _text(path)
    linked = "README.zh.md" in _text(_beside(path))
    assert linked
    for link in re.findall(r"\]\(([^)#]+)\)", _text(path)):
        assert "://" in link or (path.parent / link).exists(), link


def test_the_glossary_has_a_word_once() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ", _text(ROOT / "course/glossary.zh.md"), re.M)
    words = [english.strip() for english, _ in rows[1:]]
    assert len(words) == len(set(words)) >= 25
    assert all(HAN.search(chinese) for english, chinese in rows[1:])
