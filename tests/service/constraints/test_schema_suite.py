"""Schemas as JSON Schema means them: instances walked token by token through a matcher.

The suite of the JSON Schema organisation is read where TESTS_JSON_SCHEMA_SUITE names its folder of
a draft: the source archive of the package jsonschema carries it (`pip download --no-binary
jsonschema jsonschema`, then json/tests/draft2020-12 in it).
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import date
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer

from quire.clients import large_json
from quire.engine.errors import ConstraintError, RequestError
from quire.engine.request import Constraint, Vocabulary
from quire.engine.scheduling.matching import Matcher
from quire.service.constraints.grammars import Grammars
from quire.service.models import pocket

SUITE = os.environ.get("TESTS_JSON_SCHEMA_SUITE", "")
FILE = (pocket.directory() / "tokenizer.json").read_text(encoding="utf-8")
TOKENIZER = Tokenizer.from_str(FILE)
GRAMMARS = Grammars()
GRAMMARS.set_vocabulary(Vocabulary(FILE, TOKENIZER.get_vocab_size(), (2,)))

ORDER = "an object's keys are written in the order in which the schema names them"
FORM = "a number is written in one form: as the schema writes it, and an integer without a point"
FORMAT = "a format is a demand, not a remark"
# Valid instances that cannot be written, by file and case (None: all of a file's).
UNWRITTEN: dict[tuple[str, str | None], str] = {
    ("allOf", "allOf"): ORDER,
    ("allOf", "allOf with base schema"): ORDER,
    ("const", "const with object"): ORDER,
    ("const", "const with 0 does not match other zero-like types"): FORM,
    ("const", "const with 1 does not match true"): FORM,
    ("const", "const with -2.0 matches integer and float types"): FORM,
    ("const", "float and integers are equal up to 64-bit representation limits"): FORM,
    ("enum", "enum with 0 does not match false"): FORM,
    ("enum", "enum with [0] does not match [false]"): FORM,
    ("enum", "enum with 1 does not match true"): FORM,
    ("enum", "enum with [1] does not match [true]"): FORM,
    ("type", "integer type matches integers"): FORM,
    ("format", None): FORMAT,
}
REASONS = (
    "Unimplemented keys",  # contains, not, if, propertyNames, uniqueItems, unevaluated…, dependent…
    "Unknown format",
    "oneOf constraints are not supported",  # of branches that may hold together
    "are not disjoint",  # patterns of properties that may meet
    "is not present",  # schemas elsewhere: nothing is fetched
    "Expected positive integer",  # 2.0
    "at most 10000, points left out",  # multipleOf
    "one more than `required` names",  # minProperties
    "schema is false",
    "is false, which nothing satisfies",
)


def compiled(schema: Any) -> Matcher:
    return GRAMMARS.compile(Constraint("json_schema", json.dumps(schema)))


def accepts(matcher: Matcher, instance: Any) -> bool:
    """Whether the instance can be written to its end."""
    return written(matcher, json.dumps(instance, ensure_ascii=False))


def written(matcher: Matcher, text: str) -> bool:
    """Whether it can be, token by token."""
    one = matcher.copy()
    try:
        for token in TOKENIZER.encode(text, add_special_tokens=False).ids:
            if not one.mask()[token >> 3] >> (token & 7) & 1:
                return False
            one.accept(token)
    except ConstraintError:
        return False
    return one.may_end()


class Case(NamedTuple):
    file: str
    name: str
    schema: Any
    tests: list[dict[str, Any]]


def cases() -> Iterator[Case]:
    for path in sorted(Path(SUITE).glob("*.json")):
        for case in json.loads(path.read_text(encoding="utf-8")):
            yield Case(path.stem, case["description"], case["schema"], case["tests"])


@pytest.mark.skipif(not SUITE, reason="TESTS_JSON_SCHEMA_SUITE names no folder of the suite")
def test_what_the_suite_calls_valid_can_be_written_and_nothing_else() -> None:
    found: Counter[str] = Counter()
    wrong: list[tuple[str, str, str]] = []
    for case in cases():
        try:
            matcher = compiled(case.schema)
        except RequestError as error:
            found["refused"] += 1
            assert str(error).startswith("constraint.json_schema: "), str(error)
            if not any(reason in str(error) for reason in REASONS):
                wrong.append((case.file, case.name, str(error)))
            continue
        found["compiled"] += 1
        for test in case.tests:
            accepted = accepts(matcher, test["data"])
            kind = "valid" if test["valid"] else "invalid"
            found[kind] += 1
            known = UNWRITTEN.get((case.file, None)) or UNWRITTEN.get((case.file, case.name))
            if accepted != test["valid"] and (accepted or known is None):
                wrong.append((case.file, case.name, test["description"]))
    assert not wrong
    assert found["compiled"] >= 100 and min(found["valid"], found["invalid"]) >= 200, found


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"$ref": "#/$defs/age"}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"age": {"type": "integer", "minimum": 0, "maximum": 150}},
}
TREE = {
    "type": "object",
    "properties": {
        "value": {"type": "number"},
        "next": {"anyOf": [{"$ref": "#"}, {"const": None}]},
    },
    "required": ["value", "next"],
    "additionalProperties": False,
}
OWN: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "object": (
        PERSON,
        [{"name": "Ünal", "age": 150}, {"name": "a"}],
        [{}, {"name": ""}, {"name": "a", "age": 151}, {"name": "a", "x": 1}, ["name"], None],
    ),
    "recursion": (
        TREE,
        [{"value": 1.5, "next": None}, {"value": 1, "next": {"value": -2, "next": None}}],
        [{"value": 1}, {"value": 1, "next": {}}, {"value": "1", "next": None}],
    ),
    "array": (
        {"type": "array", "prefixItems": [{"const": "a"}], "items": {"type": "boolean"}},
        [["a"], ["a", True, False], []],
        [["b"], ["a", "a"], {}, "a"],
    ),
    "bounds": (
        {"type": "array", "items": {"multipleOf": 5, "type": "integer"}, "maxItems": 2},
        [[], [5], [0, -10]],
        [[1], [5, 5, 5]],
    ),
    "pattern": ({"type": "string", "pattern": "^[a-c]+$"}, ["abc"], ["", "abd", 1]),
    "format": ({"type": "string", "format": "date"}, ["2024-02-29"], ["2024-2-9", "today"]),
    "enum": ({"enum": [1, "two", [3]]}, [1, "two", [3]], [2, "1", [3, 3], None]),
    "all": (
        {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]},
        [3, 4, 5],
        [2, 6, "4"],
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_what_is_valid_can_be_written_and_nothing_else(name: str) -> None:
    schema, valid, invalid = OWN[name]
    matcher = compiled(schema)
    assert [one for one in valid if not accepts(matcher, one)] == []
    assert [one for one in invalid if accepts(matcher, one)] == []


def is_a_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def test_a_day_is_one_of_the_calendar() -> None:
    matcher = compiled({"type": "string", "format": "date"})
    years, days = (0, 4, 100, 400, 1900, 1996, 2000, 2023, 2110), (0, 1, 28, 29, 30, 31, 32)
    for year, month, day in product(years, range(14), days):
        text = f"{year:04}-{month:02}-{day:02}"
        assert accepts(matcher, text) == is_a_day(text), text


TIMES = {  # whether each is written
    "00:00:00Z": True,
    "23:59:59.125Z": True,
    "23:59:59.125z": False,  # `datetime.fromisoformat` refuses it
    "12:30:00-23:59": True,
    "11:19:60Z": False,
    "23:59:60Z": False,  # a leap second: no reader can tell whether there was one
    "24:00:00Z": False,
    "12:60:00Z": False,
    "12:30:00+24:00": False,
    "12:30:00": False,
}


@pytest.mark.parametrize("large", [False, True])
def test_a_time_is_one_that_readers_take(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone and behind a day, in every way that a schema comes into a grammar."""
    if large:
        monkeypatch.setattr(large_json, "LARGE", 0)
    texts = {"time": TIMES}
    texts["date-time"] = {f"2024-02-29T{text}": good for text, good in TIMES.items()}
    texts["date-time"] |= {"2023-02-29T00:00:00Z": False, "2024-02-28 00:00:00Z": False}
    for name, told in texts.items():
        schema = {"$defs": {"const": {"type": "string", "format": name}}, "$ref": "#/$defs/const"}
        plain = json.dumps(schema)
        coded = plain.replace(name, "".join(f"\\u{ord(letter):04x}" for letter in name))
        for kind, text in (
            ("json_schema", plain),
            ("json_schema", coded),
            ("grammar", f"start: one\none: %json {plain}\n"),
            ("grammar", f'start: one | "%json " %json {coded}\none: %json {coded}\n'),
            ("calls", f"start: %json {plain}"),
        ):
            matcher = GRAMMARS.compile(Constraint(kind, text))
            for one, good in told.items():
                assert accepts(matcher, one) == good, (kind, one)


def test_a_format_holds_beside_what_else_is_said_and_no_value_is_one() -> None:
    value = {"format": "date", "items": [{"format": "time"}]}
    schema = {
        "type": "object",
        "properties": {
            "format": {"format": "date", "pattern": "^20", "allOf": [{"maxLength": 10}]},
            "const": {"type": ["string", "null"], "format": "time", "pattern": "Z$"},
            "fixed": {"const": value},
        },
        "required": ["format", "const", "fixed"],
        "additionalProperties": False,
    }
    matcher = compiled(schema)
    good = {"format": "2024-02-29", "const": "00:00:00Z", "fixed": value}
    assert accepts(matcher, good) and accepts(matcher, {**good, "const": None})
    for name, other in (
        ("format", "2023-02-29"),
        ("format", "1996-02-29"),
        ("const", "00:00:60Z"),
        ("const", "00:00:00z"),
        ("fixed", {}),
    ):
        assert not accepts(matcher, {**good, name: other}), (name, other)


@pytest.mark.parametrize(
    "schema",
    [
        {"const": 2**53 + 1},
        {"enum": ["a", -(2**53) - 1]},
        {"properties": {"a": {"const": {"b": [1e300]}}}},
    ],
)
def test_a_value_that_llguidance_would_round_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="must be between -9007199254740992 and"):
        compiled(schema)
    assert accepts(compiled({"enum": [2**53, -(2**53)]}), -(2**53))


def test_a_name_of_the_schema_s_is_not_written_in_other_letters() -> None:
    """Where an object may have other names, a code would hide what must be told apart."""
    named: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for schema in (
        named,
        {**named, "additionalProperties": {"type": "string"}},
        {"type": "object", "patternProperties": {"^a$": {"type": "integer"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": named}},
    ):
        text = json.dumps(schema)
        for kind, written_as in (("json_schema", text), ("grammar", f"start: %json {text}")):
            matcher = GRAMMARS.compile(Constraint(kind, written_as))
            assert not written(matcher, r'{"\u0061": "x"}'), (kind, schema)
            assert written(matcher, r'{"b\n": "x"}'), (kind, schema)
    for letter, code in (("\0", r"\u0000"), ("\x7f", r"\u007f")):
        needed = compiled({**named, "properties": {"b": {"const": letter}}})
        assert written(needed, f'{{"b": "{code}"}}')
    closed = compiled({**named, "properties": {"b": {}}, "additionalProperties": False})
    assert written(closed, r'{"b": "\u0001"}')


ENDS = (-12345, -100, -1.5, -1, -0.5, 0, 0.25, 0.5, 1, 1.5, 9, 9.5, 100, 100.5)


def test_a_number_that_a_bound_leaves_out_is_not_written() -> None:
    """However near the other bound is; what lies between them is."""
    schemas: list[dict[str, Any]] = [
        {low: a, high: b}
        for a, b in combinations(ENDS, 2)
        for low in ("minimum", "exclusiveMinimum")
        for high in ("maximum", "exclusiveMaximum")
    ]
    texts = ["-0", *(json.dumps(one) for end in ENDS for one in (end, float(end)))]
    for schema in schemas:
        matcher = compiled({"type": "number", **schema})
        for text in texts:
            if written(matcher, text):
                assert Draft202012Validator(schema).is_valid(float(text)), (schema, text)
    for schema, text in (
        ({"exclusiveMinimum": 0, "maximum": 0.5}, "0.1"),
        ({"exclusiveMinimum": 100, "maximum": 100.5}, "100.1"),
        ({"exclusiveMaximum": 0, "minimum": -0.5}, "-0.25"),
        ({"allOf": [{"exclusiveMinimum": 0}, {"maximum": 0.5}]}, "0.001"),
        ({"exclusiveMinimum": True, "minimum": 0, "maximum": 0.5}, "0.5"),
    ):
        matcher = compiled({"type": "number", **schema})
        assert written(matcher, text) and not written(matcher, "0"), schema


def test_a_large_schema_is_what_it_is_when_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes another way into a grammar, and its refusals say the same."""
    small: dict[str, Any] = {
        "properties": {"a": {"enum": ["é", 1]}, "b": {"items": {"type": "integer"}}},
        "required": ["a"],
        "x-guidance": {"item_separator": "; ", "lenient": False},
    }
    texts = ['{"a": "é"; "b": [1; 2]}', '{"a": 1}', '{"a": 2}', '{"a": 1, "b": [1]}', '{"b": []}']
    unsupported: tuple[dict[str, Any], ...] = (
        {"uniqueItems": True},
        {"type": "x"},
        {"anyOf": []},
        {"pattern": "(a"},
        {"oneOf": [{}, {}]},
    )

    def told() -> list[Any]:
        words = []
        for schema in unsupported:
            with pytest.raises(RequestError) as caught:
                compiled(schema)
            words.append(caught.value.message)
        return [*(written(compiled(small), text) for text in texts), *words]

    once = told()
    assert once[:5] == [True, True, False, False, False]
    assert once[-1].endswith("oneOf constraints are not supported")  # no advice that is refused
    monkeypatch.setattr(large_json, "LARGE", 0)
    monkeypatch.setattr(sys.modules[__name__], "GRAMMARS", Grammars())
    GRAMMARS.set_vocabulary(Vocabulary(FILE, TOKENIZER.get_vocab_size(), (2,)))
    assert told() == once


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "the( )answer"),
        ("choice", '["the answer"]'),
        ("json_schema", '{"const": "the answer"}'),
        ("grammar", 'start: "the" " answer"'),
    ],
)
def test_what_is_forced_is_not_looked_for(kind: str, text: str) -> None:
    """It is looked for to its end, at each token anew: half a second each in a{100000}. Where it
    is, its one canonical token alone may come."""
    matcher = GRAMMARS.compile(Constraint(kind, text))
    if kind == "json_schema":
        matcher.accept(TOKENIZER.token_to_id('"'))
    mask = matcher.mask()
    may = {i for i in range(8 * len(mask)) if mask[i >> 3] >> (i & 7) & 1}
    assert may == {TOKENIZER.token_to_id(begun) for begun in ("t", "th", "the")} - {None}
    assert len(may) > 1


def test_as_many_choices_as_are_let_in_are_told_apart() -> None:
    options = [f"choice {i * 7919 % 100_003} é" for i in range(10_000)] + ["choice 1", "choice"]
    matcher = GRAMMARS.compile(Constraint("choice", json.dumps(options)))
    for text in (options[0], options[9_999], "choice 1", "choice"):
        assert written(matcher, text), text
    for text in ("choice 100003 é", "choice ", "choice 1 ", "", options[0] + options[1]):
        assert not written(matcher, text), text
