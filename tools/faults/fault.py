"""What a fault is."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Fault:
    """One patch. `old` stands in `file` exactly once."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def regression(name: str) -> tuple[str, ...]:
    """The test that repeats what users of a system like this one have reported."""
    return (f"tests/regressions/{_file_of(name)}::test_{name}",)


@cache
def _file_of(name: str) -> str:
    files = (Path(__file__).resolve().parents[2] / "tests" / "regressions").glob("test_*.py")
    return next(one.name for one in files if f"def test_{name}(" in one.read_text())
