"""Reads and writes large JSON value by value.

Invariant: results are the same as those of `json`. Its C reader and writer block all other threads
while they work, 40 ms for a megabyte of small values; those in Python let others run between any
two values, or short runs of whole numbers. Strings are read by C in both cases, each at once. A
repeated key in one object is refused as soon as it is read. So is a large text with more than
MAX_PARTS objects, lists and keys, or deeper than MAX_DEPTH: freeing them, and looking for garbage
among them, blocks other threads too.
"""

import json
import re
import sys
from collections.abc import Iterator
from itertools import islice
from json.decoder import WHITESPACE, JSONArray, scanstring  # type: ignore[attr-defined]
from json.scanner import NUMBER_RE, py_make_scanner  # type: ignore[attr-defined]
from types import FunctionType
from typing import Any, NoReturn

# The library's scanner in Python, whose numbers may have any script's digits, where those of its
# scanner in C have ten.
_TEN_DIGITS = re.compile(NUMBER_RE.pattern, NUMBER_RE.flags & ~re.UNICODE | re.ASCII)
_make_scanner = FunctionType(
    py_make_scanner.__code__, {**py_make_scanner.__globals__, "NUMBER_RE": _TEN_DIGITS}
)

LARGE = 32 << 10  # characters of a text
MAX_DEPTH = 256  # objects and lists in one another, of a large text
MAX_PARTS = 1 << 17  # objects, lists and keys of a large text
MANY = 1000  # values in one
_JOINED = 4096  # pieces that are joined at once
# Whole numbers that are read at once, with their commas, but for the list's last one; with no more
# white space than people write: a pattern holds all threads while it goes back over that.
_RUN = re.compile(
    r"(?:[ \t\n\r]{0,16}(?:0|[1-9][0-9]{0,9})[ \t\n\r]{0,16},){1,1024}(?=[ \t\n\r]{0,16}[0-9])"
)
_SHOWN = 200  # characters of a key in a complaint
# Of an object: up to its first key or its end, from a key to its value, and on to the next.
_FIRST = re.compile(r'[ \t\n\r]*+(?:(?=")|(}))')
_COLON = re.compile(r"[ \t\n\r]*+:[ \t\n\r]*+")
_NEXT = re.compile(r'[ \t\n\r]*+(?:,[ \t\n\r]*+(?=")|(}))')


def loads(text: str, **hooks: Any) -> Any:
    """Like json.loads, with its hooks for numbers and constants. Raises RepeatedKey; for a large
    text also TooManyParts, and RecursionError at a smaller depth."""
    if len(text) <= LARGE:
        return json.loads(text, object_pairs_hook=without_repeats, **hooks)
    try:
        return json.loads(text, cls=_ByValue, **hooks)
    except RecursionError as error:
        told = str(error)
    raise RecursionError(told)  # another one: the first keeps every level's frames


def dumps(value: Any, **options: Any) -> str:
    """Like json.dumps, with its options."""
    encoder = json.JSONEncoder(**options)
    if not _has_many(value):
        return encoder.encode(value)
    return "".join(_in_longer_pieces(encoder.iterencode(value)))


def _in_longer_pieces(pieces: Iterator[str]) -> Iterator[str]:
    while longer := "".join(islice(pieces, _JOINED)):
        yield longer


class TooManyParts(ValueError):
    """A large text holds more than MAX_PARTS."""


class TooManyDigits(ValueError):
    """A whole number is longer than Python converts, which keeps the time to convert in bounds."""


class RepeatedKey(ValueError):
    """An object holds `key` twice."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {json.dumps(key)[:_SHOWN]} stands twice in one object")
        self.key = key


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these pairs: a hook for json.loads. Raises RepeatedKey."""
    value: dict[str, Any] = {}
    for key, inside in pairs:
        if key in value:
            raise RepeatedKey(key)
        value[key] = inside
    return value


def whole(digits: str) -> int:
    """A hook for whole numbers. Raises TooManyDigits."""
    try:
        return int(digits)
    except ValueError:
        told = f"holds a whole number of {len(digits)} digits: at most 4300"
    raise TooManyDigits(told)


class _ByValue(json.JSONDecoder):
    """The parser of one text."""

    def __init__(self, **hooks: Any) -> None:
        super().__init__(**hooks)
        self._depth = self._parts = 0
        self.parse_object = self._object
        self.parse_array = self._array
        self.scan_once = _make_scanner(self)

    def _begin(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RecursionError(f"more than {MAX_DEPTH} objects and lists in one another")
        self._count()

    def _count(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise TooManyParts(f"holds more than {MAX_PARTS} objects, lists and keys")

    def _array(self, at: tuple[str, int], scan_once: Any, *_: Any) -> Any:
        """As json.decoder.JSONArray, but for runs of whole numbers: a prompt's ids."""
        text, end = at
        found: list[Any] = []
        self._begin()
        while run := _RUN.match(text, end):
            found.extend(map(int, run[0][:-1].split(",")))
            end = run.end()
        rest, end = JSONArray((text, end), scan_once)
        found.extend(rest)
        self._depth -= 1
        return found, end

    def _object(self, at: tuple[str, int], strict: bool, scan_once: Any, *_: Any) -> Any:
        """As json.decoder.JSONObject, which gathers all pairs before it makes a dict of them."""
        text, end = at
        found: dict[str, Any] = {}
        keep = self.memo.setdefault  # type: ignore[attr-defined]
        self._begin()
        behind = _FIRST.match(text, end) or _no_first(text, end)
        while behind[1] is None:
            key, end = scanstring(text, behind.end() + 1, strict)
            if key in found:
                raise RepeatedKey(key)
            self._count()
            colon = _COLON.match(text, end) or _no_colon(text, end)
            try:
                found[keep(key, key)], end = scan_once(text, colon.end())
            except StopIteration as error:
                raise json.JSONDecodeError("Expecting value", text, error.value) from None
            behind = _NEXT.match(text, end) or _no_next(text, end)
        self._depth -= 1
        return found, behind.end()


def _no_first(text: str, at: int) -> NoReturn:
    told = "Expecting property name enclosed in double quotes"
    raise json.JSONDecodeError(told, text, _behind_space(text, at))


def _no_colon(text: str, at: int) -> NoReturn:
    raise json.JSONDecodeError("Expecting ':' delimiter", text, _behind_space(text, at))


def _no_next(text: str, at: int) -> NoReturn:
    comma = _behind_space(text, at)
    if text[comma : comma + 1] != ",":
        raise json.JSONDecodeError("Expecting ',' delimiter", text, comma)
    end = _behind_space(text, comma + 1)
    if sys.version_info >= (3, 13) and text[end : end + 1] == "}":
        raise json.JSONDecodeError("Illegal trailing comma before end of object", text, comma)
    _no_first(text, end)


def _behind_space(text: str, at: int) -> int:
    end: int = WHITESPACE.match(text, at).end()
    return end


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
