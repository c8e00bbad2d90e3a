"""What runs of faults have told, a line of JSON each, so that a run that was stopped goes on.

A line counts only for the same copied tree, fault and tests, digit for digit, and only where it
says that all was well: whatever was not is run again.
"""

import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from mutation.tree import ROOT


@dataclass(frozen=True, slots=True)
class Line:
    """A fault that was caught (how: see `mutants.Verdict`), or tests that pass without one."""

    key: str
    name: str
    why: str
    seconds: float
    how: str = ""


class Journal:
    """The lines of a file, and those that are added."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[str, Line] = {}
        self._commit = _commit()
        if path.exists():
            for text in path.read_text(encoding="utf-8").splitlines():
                told = json.loads(text)
                told.pop("commit")
                self._lines[told["key"]] = Line(**told)

    def get(self, key: str) -> Line | None:
        """What was told of it before."""
        return self._lines.get(key)

    def add(self, line: Line) -> None:
        """Kept at once: whatever stops the run, this was run."""
        self._lines[line.key] = line
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line) | {"commit": self._commit}) + "\n")


def _commit() -> str:
    """What the tree is, for a reader: the digest in the key decides."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no repository"
