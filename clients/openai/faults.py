"""The faults of a body, collected so that all of them are reported together."""

import json
from collections.abc import Sequence
from typing import NamedTuple

MAX_FAULTS = 16
_MAX_SHOWN = 80  # characters of a value that a fault repeats


class Fault(NamedTuple):
    """A field that cannot be as it is."""

    field: str
    words: str


class BadBody(ValueError):
    """Not a body that can be asked."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(joined(faults))
        self.faults = tuple(faults)


class Faults:
    """The faults of one body. If there are very many, the first are reported, and reading ends with
    the last of these: a body of nothing but faults would take longer than one without any."""

    def __init__(self) -> None:
        self.found: list[Fault] = []

    def add(self, field: str, value: object, words: str) -> None:
        """value: None: not repeated. Raises BadBody where these are enough."""
        told = words if value is None else f"{shown(value)}: {words}"
        self.found.append(Fault(field, told))
        if len(self.found) >= MAX_FAULTS:
            raise BadBody(self.found)

    def raise_if_any(self) -> None:
        """Raises BadBody."""
        if self.found:
            raise BadBody(self.found)


def joined(faults: Sequence[Fault]) -> str:
    """All of them in one line."""
    return "; ".join(f"{field}: {words}" for field, words in faults)


def shown(value: object) -> str:
    """A value as a fault repeats it: never longer than a line."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return repr(value if len(value) <= _MAX_SHOWN else value[:_MAX_SHOWN] + "…")
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:40] + "…"
