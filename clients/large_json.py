"""JSON read and written value by value where there is much of it.

Invariant: what comes of a text or a value is what `json` makes of it. Its reader and writer in C
keep the interpreter from every other thread as long as they work, 40 ms for a megabyte of small
values; those in Python let others in between any two. C reads the strings in both, each at once.
"""

import json
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any

LARGE = 32 << 10  # characters of a text
MANY = 1000  # values in one


def loads(text: str, **hooks: Any) -> Any:
    """As json.loads, whose hooks it takes."""
    return json.loads(text, cls=_ByValue if len(text) > LARGE else None, **hooks)


def dumps(value: Any, **options: Any) -> str:
    """As json.dumps, whose options it takes."""
    encoder = json.JSONEncoder(**options)
    return "".join(encoder.iterencode(value)) if _has_many(value) else encoder.encode(value)


class RepeatedKey(ValueError):
    """An object holds `key` twice."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} stands twice in one object")
        self.key = key


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these pairs: a hook for `loads`. Raises RepeatedKey."""
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RepeatedKey(key)
            seen.add(key)
    return value


class _ByValue(json.JSONDecoder):
    def __init__(self, **hooks: Any) -> None:
        super().__init__(**hooks)
        self.scan_once = py_make_scanner(self)


def _has_many(value: Any) -> bool:
    """Whether more values than MANY are in it. One that holds itself has."""
    inside, count = [value], 0
    while inside and count <= MANY:
        one = inside.pop()
        count += 1
        if isinstance(one, dict):
            count += len(one)
            inside.extend(one.values() if count <= MANY else ())
        elif isinstance(one, list | tuple):
            count += len(one)
            inside.extend(one if count <= MANY else ())
    return count > MANY
