"""The fields of one JSON object of a request, each taken once and with its type.

Invariant: a field is taken, or skipped by name, or its presence is a fault: none is ignored. `null`
counts as absent for any field, as OpenAI's clients mean it. All faults of a body are reported
together.
"""

import json
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from quire.clients import large_json
from quire.clients.openai.faults import MAX_FAULTS, Faults
from quire.clients.single_precision import MAX_FLOAT32, no_zero

UINT32 = (1 << 32) - 1
SHORT = 4096  # characters of a text that is kept, and that the prompt's length does not bound
_AT_ONCE = 1 << 14  # values that are written into a message at once
_NO_ID, _NO_TEXT = "must be a token id", "must be a string"


def is_id(value: object) -> bool:
    """Whether the contract can hold it as a token's id."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= UINT32


def put_all(field: Any, values: list[Any]) -> None:
    """Append ids or texts to a message's field; of very many some at a time, as all other threads
    wait meanwhile."""
    for at in range(0, len(values), _AT_ONCE):
        field.extend(values[at : at + _AT_ONCE])


def _is_text(value: object) -> bool:
    """Whether it is a string."""
    return isinstance(value, str)


class Fields:
    """where: the object's own name in faults; empty for the body."""

    def __init__(self, values: dict[str, Any], faults: Faults, where: str = "") -> None:
        self._rest = dict(values)
        self._faults = faults
        self._where = where

    def name(self, field: str) -> str:
        """A field's name in a fault."""
        return f"{self._where}.{field}" if self._where else field

    def has(self, field: str) -> bool:
        """Whether it was given and has not been taken."""
        return self._rest.get(field) is not None

    def fault(self, field: str, value: object, limit: str) -> None:
        """Something is wrong with it."""
        self._faults.add(self.name(field), value, limit)

    def require(self, field: str) -> None:
        """It is a fault that it was not given."""
        if not self.has(field):
            self.fault(field, None, "is missing")

    def required_text(self, field: str) -> str:
        """A string that has to be there; empty where it is at fault."""
        self.require(field)
        return self.text(field) or ""

    def value(self, field: str) -> Any:
        """Whatever it is; None: not given."""
        return self._rest.pop(field, None)

    def text(self, field: str, most: int | None = None) -> str | None:
        """A string. most: its characters."""
        value: str | None = self._typed(field, str, "a string")
        if value is not None and most is not None and len(value) > most:
            self.fault(field, value, f"must have at most {most} characters")
        return value

    def flag(self, field: str) -> bool | None:
        """true or false."""
        value: bool | None = self._typed(field, bool, "true or false")
        return value

    def number(self, field: str) -> float | None:
        """Any number that the contract can hold."""
        value = self.value(field)
        return None if value is None else self.number_in(field, value)

    def number_in(self, field: str, value: object) -> float | None:
        """The number in a value that was taken, or is in an object; None: it is not a number, which
        is a fault."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fault(field, value, "must be a number")
        elif not -MAX_FLOAT32 <= value <= MAX_FLOAT32:
            self.fault(field, value, f"is beyond the range of a float (±{MAX_FLOAT32:.7g})")
        else:
            return no_zero(float(value))
        return None

    def whole(self, field: str, low: int = 0, high: int = UINT32) -> int | None:
        """A whole number in a range, its ends included."""
        value = self.value(field)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fault(field, value, "must be a whole number")
            return None
        if not low <= value <= high:
            below = value < low == 0
            limit = "must not be negative" if below else f"must be between {low} and {high}"
            self.fault(field, value, limit)
            return None
        return value

    def wholes(self, field: str) -> list[int]:
        """A list of token ids; empty: not given."""
        return self._each(field, self.items(field), is_id, _NO_ID)

    def texts(self, field: str) -> list[str]:
        """A list of strings; empty: not given."""
        return self._each(field, self.items(field), _is_text, _NO_TEXT)

    def text_or_ids(self, field: str, value: object) -> str | list[int] | None:
        """The text or ids in a value that was taken, or is in a list; None: neither, which is a
        fault."""
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            return self._each(field, value, is_id, _NO_ID)
        self.fault(field, value, "must be a string or a list of token ids")
        return None

    def text_or_texts(self, field: str) -> list[str]:
        """A string, or a list of them; empty: not given."""
        value = self.value(field)
        if isinstance(value, list):
            return self._each(field, value, _is_text, _NO_TEXT)
        if value is None or isinstance(value, str):
            return [] if value is None else [value]
        self.fault(field, value, "must be a string or a list of strings")
        return []

    def items(self, field: str) -> list[Any]:
        """A list; empty: not given."""
        return self._typed(field, list, "a list") or []

    def nested(self, field: str) -> "Fields | None":
        """An object whose fields must be taken too."""
        value = self._typed(field, dict, "an object")
        return None if value is None else Fields(value, self._faults, self.name(field))

    def item(self, field: str, value: object) -> "Fields | None":
        """An object in a list; field: with its index."""
        if isinstance(value, dict):
            return Fields(value, self._faults, self.name(field))
        self.fault(field, value, "must be an object")
        return None

    def mapping(self, field: str) -> dict[str, Any]:
        """An object whose fields may be any; empty: not given."""
        return self._typed(field, dict, "an object") or {}

    def json_text(self, field: str) -> str:
        """An object as JSON text, its keys in their order; empty: not given."""
        value = self._typed(field, dict, "an object")
        return "" if value is None else large_json.dumps(value, ensure_ascii=False)

    def only(self, field: str, *allowed: object, why: str = "") -> None:
        """A field that is taken only with these values, which change nothing."""
        value = self.value(field)
        if value is None or any(value == one and type(value) is type(one) for one in allowed):
            return
        known = ", ".join(json.dumps(one) for one in allowed)
        self.fault(field, value, why or (f"must be {known}" if known else "is not supported"))

    def passed_over(self, *names: str) -> None:
        """Fields that change nothing here, as the documentation says."""
        for name in names:
            self._rest.pop(name, None)

    def end(self, hints: Iterable[tuple[str, str]] = ()) -> None:
        """Report the fields that were not taken and are not null. hints: for some names, what to
        use instead."""
        instead = dict(hints)
        unknown = ((name, value) for name, value in self._rest.items() if value is not None)
        for name, value in islice(unknown, MAX_FAULTS):
            self.fault(name[:80], value, instead.get(name, "is not a field of this request"))
        self._rest.clear()

    def _each(
        self, field: str, values: list[Any], good: Callable[[object], bool], limit: str
    ) -> list[Any]:
        """All of them, or none: the first that is not good is a fault."""
        for i, value in enumerate(values):
            if not good(value):
                self.fault(f"{field}[{i}]", value, limit)
                return []
        return values

    def _typed(self, field: str, kind: type, article: str) -> Any:
        value = self.value(field)
        if value is None or isinstance(value, kind):
            return value
        self.fault(field, value, f"must be {article}")
        return None
