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
