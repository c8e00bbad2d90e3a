"""Where the chapters lie, and how their files are loaded: a folder's name is no Python name.

A chapter is a folder `NN-title` with a text (README.md), a notebook (notebook.py, in jupytext's
percent form), a run (run.py: its figures, and a picture of them), and an exercise (exercise.py,
with a hole, and checks.py, which knows what usually goes wrong). Its solution is in `solutions/`.
"""

import importlib.util
import re
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

COURSE = Path(__file__).resolve().parent
HOLE_BEGINS = "    # ---- your code begins ----\n"
HOLE_ENDS = "    # ---- your code ends ----\n"

if str(COURSE) not in sys.path:
    sys.path.append(str(COURSE))


def numbers() -> list[int]:
    """The chapters that are written."""
    return sorted(int(path.parent.name[:2]) for path in COURSE.glob("[0-9][0-9]-*/README.md"))


def folder(number: int) -> Path:
    """A chapter's folder. Raises ValueError for one that is not there."""
    found = list(COURSE.glob(f"{number:02}-*"))
    if number not in numbers() or len(found) != 1:
        there = ", ".join(str(n) for n in numbers())
        raise ValueError(f"chapter {number}: not there; there are {there}")
    return found[0]


def solution(number: int) -> Path:
    """The exercise of a chapter with its hole filled."""
    return COURSE / "solutions" / f"{folder(number).name}.py"


def hole(number: int) -> str:
    """The exercise of a chapter as it is handed out: the solution with its hole open again. (What
    lies in the chapter's folder is the learner's, and may be filled.)"""
    before, rest = solution(number).read_text(encoding="utf-8").split(HOLE_BEGINS)
    after = rest.split(HOLE_ENDS)[1]
    name = re.findall(r"^ *def (\w+)\(", before, re.MULTILINE)[-1]
    return f'{before}{HOLE_BEGINS}    raise NotImplementedError("{name}")\n{HOLE_ENDS}{after}'


class _AsWritten(SourceFileLoader):
    """Reads the text each time: bytecode that is kept beside a file is taken for its own where the
    file was written again within a second, as long as before."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def load(path: Path) -> ModuleType:
    """A file as a module of its own: two loads share nothing."""
    name = "course_" + "_".join(path.with_suffix("").parts[-2:]).replace("-", "_")
    spec = importlib.util.spec_from_file_location(name, path, loader=_AsWritten(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
