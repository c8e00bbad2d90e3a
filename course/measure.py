"""Run every chapter's figures again and write them down: `python course/measure.py [NUMBER...]`.

Of each chapter: figures.json (what was found, and on what), picture.svg, and the table between
the marks in its texts. Figures that `measured` names are times, and differ from machine to machine;
all others are counts, and every run of the notebook holds them to what is written down.
"""

import argparse
import json
import platform
import re
from pathlib import Path
from typing import Any

import chapters
import lab

lab.need()

import matplotlib as mpl  # noqa: E402

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "quire"  # equal figures give equal files

Figures = dict[str, Any]
BEGIN, END = "<!-- run: begin -->\n", "<!-- run: end -->\n"


def table(figures: Figures) -> str:
    """The rows that a chapter's run wants shown, in markdown."""
    head, *rows = figures["table"]
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def with_table(text: str, figures: Figures) -> str:
    """A text whose table is that of these figures. Raises ValueError if it has no place for it."""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise ValueError(f"no {BEGIN.strip()} and {END.strip()}")
    return text[: begin + len(BEGIN)] + table(figures) + text[end:]


def texts(folder: Path) -> list[Path]:
    """A chapter's text, and its translation where there is one."""
    return sorted(folder.glob("README*.md"))


def processor() -> str:
    """The model name of this machine's processor."""
    try:
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        said = ""
    found = re.search(r"model name\s*: (.*)", said)
    return found[1] if found else platform.processor() or platform.machine()


def draw(number: int) -> None:
    folder = chapters.folder(number)
    run = chapters.load(folder / "run.py")
    figures = run.figures()
    figures["machine"] = f"{processor()}, one thread"
    path = folder / "figures.json"
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    picture = run.draw(figures)
    picture.savefig(folder / "picture.svg", metadata={"Date": None, "Creator": None})
    for text in texts(folder):
        text.write_text(with_table(text.read_text(encoding="utf-8"), figures), encoding="utf-8")
    print(f"chapter {number}: {folder.name}/picture.svg")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapter", nargs="*", type=int, help="its number")
    for chapter in parser.parse_args().chapter or chapters.numbers():
        draw(chapter)
