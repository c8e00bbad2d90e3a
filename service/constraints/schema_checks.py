"""What of a schema llguidance is better not shown, and what it would not honour whole.

Invariant: a schema is looked at wherever one stands: a property called `const` is no value, and
what a `const` holds is no schema. So a `$ref` must lead to where one stands.
"""

import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

MAX_PATTERNS = 64  # that properties' names may have, in a schema: any two are told apart
MAX_MULTIPLE = 10_000  # multipleOf without its point: the lexer has a state for each remainder
MAX_NUMBER = 2**53  # of these: llguidance makes doubles of them, and dies near -2**63
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
VALUES = frozenset({"const", "enum"})
REMARKS = frozenset({"default", "example", "examples"})
NAMED = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
_SCHEMA, _NAMES = "", "by name"


def check(schema: Any) -> None:
    """Of a schema, by itself or in a grammar. Raises ValueError."""
    patterns, judged = 0, set[int]()  # of allOf, with the schema that holds them
    for keyword, item in _places(schema):
        if keyword != _SCHEMA:
            _check_number(keyword, item)
            continue
        found = item.get("patternProperties")
        patterns += len(found) if isinstance(found, dict) else 0
        if id(item) not in judged:
            together = _together(item)
            judged.update(map(id, together))
            _check_multiples(together)
            _check_names(together)
        _check_reference(item.get("$ref"))
        for name in BOUNDS:
            _check_number(name, item.get(name))
        if item is not schema and "x-guidance" in item:
            raise ValueError("x-guidance: only for a whole schema, not for a part of it")
    if patterns > MAX_PATTERNS:
        raise ValueError(f"patternProperties: {patterns}: at most {MAX_PATTERNS} in a schema")
    _check_strict(schema)


def _places(schema: Any) -> Iterator[tuple[str, Any]]:
    """Each object that is a schema, and each number or text of a value behind its keyword."""
    waiting = [(_SCHEMA, schema)]
    while waiting:
        place, item = waiting.pop()
        if isinstance(item, list):
            waiting.extend((place, one) for one in item)
        elif isinstance(item, dict) and place == _SCHEMA:
            yield place, item
            waiting.extend((_behind(key), item[key]) for key in item if key not in REMARKS)
        elif isinstance(item, dict):
            inside = _SCHEMA if place == _NAMES else place
            waiting.extend((inside, one) for one in item.values())
        elif place in VALUES:
            yield place, item


def _behind(key: str) -> str:
    """What stands behind a key of a schema."""
    return key if key in VALUES else _NAMES if key in NAMED else _SCHEMA


def _check_reference(reference: Any) -> None:
    """That it leads to no value, nor to the names of several schemas."""
    if not isinstance(reference, str):
        return
    place = _SCHEMA
    for step in unquote(reference.partition("#")[2]).split("/")[1:]:
        if place == _SCHEMA and step in VALUES | REMARKS:
            raise ValueError(f"$ref: {reference[:80]!r}: leads to a value, not to a schema")
        place = _behind(step) if place == _SCHEMA else _SCHEMA
    if place == _NAMES:
        raise ValueError(f"$ref: {reference[:80]!r}: leads to several schemas")


def _together(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """A schema and those of its `allOf`, which hold at once."""
    found = [schema]
    for one in found:  # which grows
        members = one.get("allOf")
        found += [m for m in members if isinstance(m, dict)] if isinstance(members, list) else []
    return found


def _check_names(together: list[dict[str, Any]]) -> None:
    """A name that may come twice is counted twice, but is one property to whoever reads it."""
    types = [one["type"] for one in together if "type" in one]
    if any("object" not in (kind if isinstance(kind, list) else [kind]) for kind in types):
        return
    leasts = [one.get("minProperties") for one in together]
    least = max((n for n in leasts if isinstance(n, int | float)), default=0)
    listed = [one.get("required") for one in together]
    known = len({str(name) for names in listed if isinstance(names, list) for name in names})
    if least > known + 1:
        raise ValueError(
            f"minProperties: {least}: at most {known + 1}, one more than `required` names: a name"
            " that is written twice would count twice"
        )


def _check_number(name: str, value: Any) -> None:
    """Where each whole number is a double, and as llguidance reads it."""
    if not isinstance(value, int | float):
        return
    if not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise ValueError(f"{name}: {value}: must be between -{MAX_NUMBER} and {MAX_NUMBER}")
    if isinstance(value, float) and _as_read(value) != value:
        raise ValueError(f"{name}: {value}: cannot be kept exactly: write it with fewer digits")


def _as_read(value: float) -> float:
    """What llguidance makes of a number's text: all digits as one double, and then the point."""
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    number, left = float("".join(map(str, digits))), int(exponent)
    while left < -308:
        number, left = number / 1e308, left + 308
    scaled = number * float(f"1e{left}") if left >= 0 else number / float(f"1e{-left}")
    return -scaled if sign else scaled


def _check_multiples(together: list[dict[str, Any]]) -> None:
    """Bound `multipleOf` over schemas that hold together: llguidance makes one number of all of
    theirs."""
    values = [one.get("multipleOf") for one in together]
    found = {v for v in values if isinstance(v, int | float) and not isinstance(v, bool)}
    if min(found, default=1) <= 0:
        raise ValueError(f"multipleOf: {min(found)}: must be above 0")
    if math.prod(map(_without_point, found)) > MAX_MULTIPLE:
        told = " and ".join(map(str, sorted(found)))[:100]
        raise ValueError(f"multipleOf: {told}: at most {MAX_MULTIPLE}, points left out")


def _without_point(value: float) -> int:
    """0.25 is 25, and so is 25."""
    if isinstance(value, float) and not math.isfinite(value):
        return MAX_MULTIPLE + 1
    _, digits, exponent = Decimal(str(value)).normalize().as_tuple()
    zeros = "0" * max(int(exponent), 0)
    return int("".join(map(str, digits)) + zeros)


def _check_strict(schema: Any) -> None:
    """A schema is honoured whole."""
    if not isinstance(schema, dict) or "x-guidance" not in schema:
        return
    own = schema["x-guidance"]
    if not isinstance(own, dict):
        raise ValueError("x-guidance: must be an object")
    for name in ("lenient", "coerce_one_of"):
        if own.get(name):
            raise ValueError(f"x-guidance.{name}: what cannot be honoured is refused")
