"""Chinese pages stand beside the English ones: same tree, same code, same figures, same names."""

import re
from collections import Counter
from pathlib import Path

import chapters
import pytest

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = ROOT / "course" / "glossary.zh.md"
CHINESE = sorted(
    path
    for path in (*ROOT.glob("*.zh.md"), *(ROOT / "course").rglob("*.zh.md"))
    if path != GLOSSARY
)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
FIGURES = re.compile(r"<!-- (?:run|measured): begin.*?end -->", re.DOTALL)
HAN = re.compile(r"[\u4e00-\u9fff]")
LEAST = 0.6  # of letters and digits outside of code, links and figures

each_page = pytest.mark.parametrize("path", CHINESE, ids=lambda path: str(path.relative_to(ROOT)))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _beside(path: Path) -> Path:
    """The English page of a Chinese one."""
    return path.with_name(path.name.replace(".zh.md", ".md"))


def _prose(text: str) -> str:
    """A page without code, figures, and where its links lead."""
    text = FENCED.sub("", FIGURES.sub("", text))
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "", text))


def _headings(text: str) -> list[str]:
    return re.findall(r"^#+(?= )", FENCED.sub("", text), re.MULTILINE)


def _code(text: str) -> set[str]:
    """What stands between two backticks, on one line or two."""
    return {" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCED.sub("", text))}


def _numbers(text: str) -> set[str]:
    """All that are written in digits. 8 billion is 80 亿."""
    prose = re.sub(r"(\d+) billion", lambda number: f"{number[1]}0 亿", _prose(text))
    return set(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?%?", prose))


def _links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", text)


def test_every_chapter_is_there_and_the_answers() -> None:
    folders = [chapters.folder(number) for number in chapters.numbers()]
    wanted = {ROOT / "README.zh.md", chapters.COURSE / "README.zh.md"}
    wanted |= {folder / "README.zh.md" for folder in folders}
    assert set(CHINESE) == wanted | {chapters.COURSE / "solutions" / "answers.zh.md"}


@each_page
def test_a_page_has_the_tree_the_code_and_the_figures_of_the_english_one(path: Path) -> None:
    chinese, english = _text(path), _text(_beside(path))
    assert _headings(chinese) == _headings(english)
    assert FENCED.findall(chinese) == FENCED.findall(english)
    assert FIGURES.findall(chinese) == FIGURES.findall(english)
    assert _code(chinese) == _code(english)
    named = re.compile(r"^- `([^`]+)`, `([^`]+)`", re.MULTILINE)
    assert named.findall(chinese) == named.findall(english)
    begun = re.compile(r"^(?:\d\. |- )", re.MULTILINE)
    assert begun.findall(chinese) == begun.findall(english)


@each_page
def test_a_page_is_chinese(path: Path) -> None:
    letters = [character for character in _prose(_text(path)) if character.isalnum()]
    share = sum(bool(HAN.match(character)) for character in letters) / len(letters)
    assert share >= LEAST, f"{share:.0%} of its letters"


@each_page
def test_numbers_in_the_prose_are_those_of_the_english_page(path: Path) -> None:
    """A figure that one page alone has is stale."""
    assert _numbers(_text(path)) == _numbers(_text(_beside(path)))


@each_page
def test_pages_lead_to_one_another_and_to_the_chinese_page_where_there_is_one(path: Path) -> None:
    english = _beside(path)

    def there(link: str) -> str:
        chinese = re.sub(r"\.md(?=#|$)", ".zh.md", link)
        return chinese if (path.parent / chinese.split("#")[0]).exists() else link

    wanted = Counter(there(link) for link in _links(_text(english)) if link[0] != "#")
    found = Counter(link for link in _links(_text(path)) if link[0] != "#")
    assert wanted.pop(path.name, 0) == found.pop(english.name, 0) == 1
    for link in [*found]:
        if link.endswith(GLOSSARY.name):  # has no English page
            del found[link]
    assert found == wanted


def test_the_course_names_its_chapters_as_they_name_themselves() -> None:
    for page in ("README.md", "README.zh.md"):
        rows = re.findall(r"^\| (\d+) \| \[(.*)\]\((.*)\) \|", _text(chapters.COURSE / page), re.M)
        assert [int(number) for number, _, _ in rows] == chapters.numbers()
        for number, title, link in rows:
            assert link == f"{chapters.folder(int(number)).name}/{page}"
            assert _text(chapters.COURSE / link).startswith(f"# {number}. {title}\n"), link


def test_the_answers_are_headed_as_the_chapters() -> None:
    for answers, page in (("answers.md", "README.md"), ("answers.zh.md", "README.zh.md")):
        heads = re.findall(r"^#(# .*)$", _text(chapters.COURSE / "solutions" / answers), re.M)
        folders = [chapters.folder(number) for number in chapters.numbers()]
        assert heads == [_text(folder / page).splitlines()[0] for folder in folders]


def test_the_glossary_has_a_word_once() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ", _text(GLOSSARY), re.M)
    words = [english.strip() for english, _ in rows[1:]]
    assert len(words) == len(set(words)) >= 25
    assert all(HAN.search(chinese) for english, chinese in rows[1:])
