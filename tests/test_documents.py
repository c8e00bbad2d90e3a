"""What documents and comments name is there: files, names in the code, pages that links lead to."""

import os
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    *("benchmarks", "clients", "course", "deploy", "docs", "engine", "examples", "kernels"),
    *("proto", "quire", "service", "tests", "tools"),
)
TEXTS = {".py", ".md", ".c", ".h", ".js", ".proto", ".sbatch", ".service", ".toml", ".yaml"}
PASSED_OVER = {"node_modules", "__pycache__"}

_FILE = re.compile(
    rf"(?<=[\s`\"'(])(?:{'|'.join(FOLDERS)})/[\w./-]*\w\w\.(?:py|md|json|toml|yaml|proto|c|h|js)\b"
)
_NAME = re.compile(r"`([A-Z]\w+)\.(\w+)(?:\(.*?\))?`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@cache
def files() -> dict[str, Path]:
    """All that is kept in the folders and beside them, by its path from the root."""
    found = [one for one in ROOT.iterdir() if one.is_file()]
    for folder in FOLDERS:
        for place, inner, names in os.walk(ROOT / folder):
            inner[:] = [one for one in inner if one not in PASSED_OVER]
            found += [Path(place, name) for name in names]
    return {str(one.relative_to(ROOT)): one for one in found}


@cache
def texts() -> dict[str, str]:
    """What they say, tests left out."""
    return {
        name: path.read_text(encoding="utf-8")
        for name, path in files().items()
        if (path.suffix in TEXTS or name == "Makefile") and not name.startswith("tests/")
    }


def documents() -> list[tuple[str, str]]:
    return [(name, text) for name, text in texts().items() if name.endswith(".md")]


def test_every_file_that_is_named_is_there() -> None:
    ends = {path[i:] for path in files() for i in (0, *(m.end() for m in re.finditer("/", path)))}
    missing = [
        f"{where}: {named}"
        for where, text in texts().items()
        for named in _FILE.findall(text)
        if named not in ends
    ]
    assert not missing


def test_every_name_of_a_class_that_documents_give_is_there() -> None:
    defined = re.compile(r"^ *(?:class|message) (\w+)", re.MULTILINE)
    by_class: dict[str, list[str]] = {}
    for text in texts().values():
        for name in defined.findall(text):
            by_class.setdefault(name, []).append(text)
    missing = [
        f"{where}: {owner}.{name}"
        for where, text in documents()
        for owner, name in _NAME.findall(text)
        if not any(re.search(rf"\b{name}\b", source) for source in by_class.get(owner, ()))
    ]
    assert not missing


def test_every_link_leads_somewhere() -> None:
    lost = []
    for where, text in documents():
        for link in _LINK.findall(text):
            target, _, anchor = link.partition("#")
            if target.startswith(("http:", "https:")):
                continue
            path = (ROOT / where).parent / target if target else ROOT / where
            if not path.exists() or (anchor and anchor not in anchors(path)):
                lost.append(f"{where}: {link}")
    assert not lost


def anchors(page: Path) -> set[str]:
    """Of its headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", head).strip().lower().replace(" ", "-") for head in heads}
