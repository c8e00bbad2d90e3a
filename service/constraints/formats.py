"""Formats of days and times, which llguidance takes more loosely than RFC 3339 has them.

Invariant: what is written for `date`, `time` and `date-time` is a day of the calendar and a time of
that day. llguidance lets a 29 February into every year and a second of 60 into every minute, which
readers of such texts refuse. Nor do most take what RFC 3339 has beyond that, and so it is not
written: leap seconds, and the year 0000.
"""

from collections.abc import Mapping
from typing import Any

_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_FOURTH = "(0[48]|[2468][048]|[13579][26])"  # of years, but for those of a whole century
_DAY = (
    f"({_YEAR}-((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)"
    f"|(0[13578]|1[02])-31)|([0-9]{{2}}{_FOURTH}|{_FOURTH}00)-02-29)"
)
_TIME = (
    r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?"
    r"(Z|[-+]([01][0-9]|2[0-3]):[0-5][0-9])"
)
_PATTERNS = {"date": f"^{_DAY}$", "time": f"^{_TIME}$", "date-time": f"^{_DAY}[tT]{_TIME}$"}
_WRITTEN = tuple(f'"{name}"' for name in _PATTERNS)
_VALUES = frozenset({"const", "enum", "default", "example", "examples"})
_NAMED = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})


def are_in(text: str) -> bool:
    """Whether any of them may stand in a text of JSON, where a letter may be written as its code."""
    return "\\u" in text or any(name in text for name in _WRITTEN)


def exact(schema: Any) -> Any:
    """The schema with patterns in the place of these formats."""
    if isinstance(schema, list):
        return [exact(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: _inside(key, value) for key, value in schema.items()}
    name = found.get("format")
    pattern = _PATTERNS.get(name) if isinstance(name, str) else None
    if pattern is None:
        return found
    del found["format"]
    if "pattern" not in found:
        return found | {"pattern": pattern}
    beside = found.get("allOf", [])
    return found | {"allOf": [*beside, {"pattern": pattern}]} if isinstance(beside, list) else found


def _inside(key: str, value: Any) -> Any:
    if key in _VALUES:
        return value
    if key in _NAMED and isinstance(value, Mapping):
        return {name: exact(one) for name, one in value.items()}
    return exact(value)
