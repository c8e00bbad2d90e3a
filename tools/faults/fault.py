"""What a fault is."""

from dataclasses import dataclass


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
    return (f"tests/test_regressions.py::test_{name}",)
