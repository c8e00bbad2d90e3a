"""What llguidance takes more loosely than it is meant: days, times, bounds left out, and names.

Invariant: what is written for `date`, `time` and `date-time` is a day of the calendar and a time of
that day. llguidance lets a 29 February into every year and a second of 60 into every minute, which
readers of such texts refuse. Nor do most take what RFC 3339 has beyond that, and so it is not
written: leap seconds, and the year 0000. A whole number that a bound leaves out is not written:
llguidance would write it where the other bound is less than one away, as 0 for 0 < x < 0.5. A name
with codes of letters in it, which to a reader is a name of the schema's, is not written either.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from quire.clients import large_json
from quire.service.constraints.schema_checks import NAMED, REMARKS, VALUES

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
_OPEN = {"exclusiveMinimum": ("minimum", max), "exclusiveMaximum": ("maximum", min)}
_OTHERS = ("properties", "patternProperties", "required")  # names that others are told apart from
_ESCAPES = {"json_allowed_escapes": 'nrbtf\\"'}  # without codes, of control characters alone
_CODED = re.compile(r"\\u00|\x7f")  # in JSON: what is written as a code
_WRITTEN = tuple(f'"{name}"' for name in (*_PATTERNS, *_OPEN, *_OTHERS))
_NEXT = 2.0**-48  # of a number, to the next; llguidance does not read every bit of a double
_LEAST = 1e-20  # next to 0


def are_in(text: str) -> bool:
    """Whether any of them occurs in a JSON text, which may have escapes in place of letters."""
    return "\\u" in text or any(name in text for name in _WRITTEN)


def exact(schema: Any) -> Any:
    """The schema with patterns in the place of these formats, and bounds that are themselves in the
    place of those that are left out, where one with a fraction might be near. Where an object may
    have other names than the schema's, codes are allowed only if a text of the schema needs one."""
    made = _exact(schema, opened=any(map(_has_fractions, _objects(schema))))
    others = any(map(_has_others, _objects(schema)))
    if not others or _CODED.search(large_json.dumps(schema, ensure_ascii=False)):
        return made
    options = made.get("x-guidance", {})
    return {**made, "x-guidance": {**_ESCAPES, **options}} if isinstance(options, dict) else made


def _exact(schema: Any, *, opened: bool) -> Any:
    if isinstance(schema, list):
        return [_exact(one, opened=opened) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: _inside(key, value, opened) for key, value in schema.items()}
    if opened:
        for left_out in _OPEN:
            _close(found, left_out)
    name = found.get("format")
    pattern = _PATTERNS.get(name) if isinstance(name, str) else None
    if pattern is None:
        return found
    del found["format"]
    if "pattern" not in found:
        return found | {"pattern": pattern}
    beside = found.get("allOf", [])
    return found | {"allOf": [*beside, {"pattern": pattern}]} if isinstance(beside, list) else found


def _inside(key: str, value: Any, opened: bool) -> Any:
    if key in VALUES | REMARKS:
        return value
    if key in NAMED and isinstance(value, Mapping):
        return {name: _exact(one, opened=opened) for name, one in value.items()}
    return _exact(value, opened=opened)


def _close(schema: dict[str, Any], left_out: str) -> None:
    """Where a bound excludes a whole number (before draft 6, by true beside the bound), use the
    next one."""
    name, closer = _OPEN[left_out]
    side = closer(-1, 1)
    beside = schema.get(name)
    bound = beside if schema.get(left_out) is True else schema.get(left_out)
    if not _is_number(bound) or bound != int(bound) or bound * side < 0:
        return  # towards 0 it is left out
    next_to = bound * (1 + _NEXT) or side * _LEAST
    del schema[left_out]
    schema[name] = closer(next_to, beside) if _is_number(beside) else next_to


def _objects(schema: Any) -> Iterator[Mapping[str, Any]]:
    """All that are in it."""
    level = [schema]
    while level:
        one = level.pop()
        if isinstance(one, Mapping):
            yield one
            level.extend(one.values())
        elif isinstance(one, list):
            level.extend(one)


def _has_fractions(schema: Mapping[str, Any]) -> bool:
    """Whether a bound of it is no whole number."""
    bounds = [schema.get(name) for pair in _OPEN.items() for name in (pair[0], pair[1][0])]
    return any(_is_number(bound) and bound != int(bound) for bound in bounds)


def _has_others(schema: Mapping[str, Any]) -> bool:
    """Whether it names properties, and there may be more."""
    return schema.get("additionalProperties") is not False and any(map(schema.get, _OTHERS))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
