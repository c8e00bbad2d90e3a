"""Bare parameter values of a model, as JSON of the types that a schema allows.

Invariant: every value becomes JSON, and none is lost: what is not JSON of an allowed type becomes a
string.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

_MAX_PARTS = 1000  # of a parameter's schema: references and alternatives that are looked at
_WORDS = {"True": "true", "False": "false", "None": "null"}  # templates show Python's
STRING = frozenset({"string"})


def allowed_types(schema: Mapping[str, Any], name: str) -> frozenset[str]:
    """The types of a parameter; string where the schema does not say."""
    properties = schema.get("properties")
    described = properties.get(name) if isinstance(properties, dict) else None
    return frozenset(_types(described, schema)) or STRING


def _stated(part: Mapping[str, Any]) -> Iterator[str]:
    """What a part says by itself: its types, or those of the values that it lists."""
    stated = part.get("type")
    if isinstance(stated, str):
        yield stated
    elif isinstance(stated, list):
        yield from (item for item in stated if isinstance(item, str))
    elif isinstance(part.get("enum"), list):
        yield from map(_type_of, part["enum"])
    elif "const" in part:
        yield _type_of(part["const"])


def _types(part: Any, root: Mapping[str, Any]) -> Iterator[str]:
    """Each part is examined once: references may lead to one from anywhere, and in circles."""
    waiting, seen = [part], set[int]()
    while waiting and len(seen) < _MAX_PARTS:
        part = waiting.pop()
        if not isinstance(part, dict) or id(part) in seen:
            continue
        seen.add(id(part))
        yield from _stated(part)
        for key in ("anyOf", "oneOf", "allOf"):
            if isinstance(part.get(key), list):
                waiting.extend(part[key])
        if isinstance(part.get("$ref"), str):
            waiting.append(_referred(part["$ref"], root))


def _referred(reference: str, root: Mapping[str, Any]) -> Any:
    """The target of a reference inside the schema, or None."""
    if not reference.startswith("#"):
        return None
    found: Any = root
    for step in reference[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    named = {str: "string", list: "array", dict: "object", type(None): "null"}
    return named[type(value)]


def as_json(text: str, types: frozenset[str]) -> str:
    """The value's JSON: as it was written, where it is JSON of an allowed type; else a string."""
    written = text.strip()
    written = _WORDS.get(written, written)
    try:
        sort = _type_of(json.loads(written, parse_constant=_refuse))
    except (ValueError, RecursionError):
        return quoted(text)
    fits = sort in types or (sort == "number" and "integer" in types)
    return written if fits and sort != "string" else quoted(text)


def _refuse(name: str) -> Any:
    raise ValueError(name)


def quoted(text: str) -> str:
    """A JSON string."""
    return json.dumps(text, ensure_ascii=False)
