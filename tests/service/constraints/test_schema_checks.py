"""What a schema says is looked at where it says it, and written as it says it."""

import json
import random
from typing import Any

import pytest
from tokenizers import Tokenizer

from quire.engine.errors import ConstraintError, RequestError
from quire.engine.request import Constraint, Vocabulary
from quire.engine.scheduling.matching import Matcher
from quire.service.constraints.grammars import Grammars
from quire.service.models import pocket

FILE = (pocket.directory() / "tokenizer.json").read_text(encoding="utf-8")
TOKENIZER = Tokenizer.from_str(FILE)
GRAMMARS = Grammars()
GRAMMARS.set_vocabulary(Vocabulary(FILE, TOKENIZER.get_vocab_size(), (2,)))


def compiled(schema: Any) -> Matcher:
    return GRAMMARS.compile(Constraint("json_schema", json.dumps(schema)))


def accepts(matcher: Matcher, instance: Any) -> bool:
    return written(matcher, json.dumps(instance))


def written(matcher: Matcher, text: str) -> bool:
    """Whether it can be, token by token."""
    one = matcher.copy()
    try:
        for token in TOKENIZER.encode(text, add_special_tokens=False).ids:
            one.accept(token)
    except ConstraintError:
        return False
    return one.may_end()


def test_a_property_may_be_called_as_a_keyword_is_and_a_value_holds_no_schema() -> None:
    named = {name: {"type": "integer", "default": 2**60} for name in ("const", "enum", "minimum")}
    matcher = compiled({"type": "object", "properties": named, "additionalProperties": False})
    assert accepts(matcher, {"const": 1, "enum": 2, "minimum": 3})
    value = {"multipleOf": 0, "minProperties": 9, "$ref": "#/const", "patternProperties": {}}
    assert accepts(compiled({"const": value, "default": {"maximum": 1e300}}), value)
    inside = {"properties": {"const": {"$ref": "#/$defs/enum"}}, "$defs": {"enum": {"const": 1}}}
    assert not accepts(compiled(inside), {"const": 2}) and accepts(compiled(inside), {"const": 1})


def test_so_many_names_as_are_told_apart_may_be_asked_for() -> None:
    """A name may come twice, but is one to its reader: what comes beside `required` ones, once."""
    for schema, valid in (
        ({"minProperties": 1}, {"a": 1}),
        ({"minProperties": 3, "required": ["a", "b"]}, {"a": 1, "b": 2, "c": 3}),
    ):
        matcher = compiled({"type": "object", **schema})
        assert accepts(matcher, valid)
        assert not accepts(matcher, dict(list(valid.items())[:-1]))


def test_names_are_counted_over_all_that_holds_at_once() -> None:
    both = [{"type": "object", "required": ["a", "b"]}, {"minProperties": 3}]
    matcher = compiled({"allOf": both})
    assert accepts(matcher, {"a": 1, "b": 2, "c": 3}) and not accepts(matcher, {"a": 1, "b": 2})
    matcher = compiled({"type": "object", "required": ["a"], "allOf": [{"minProperties": 2}]})
    assert accepts(matcher, {"a": 1, "b": 2}) and not written(matcher, '{"a": 1, "a": 1}')
    compiled({"type": "array", "minProperties": 5})  # which says nothing of arrays
    for refused in (
        {"allOf": [{"type": "object", "required": ["a"]}, {"minProperties": 3}]},
        {"type": ["array", "object"], "minProperties": 5},
    ):
        with pytest.raises(RequestError, match="more than `required` names"):
            compiled(refused)


@pytest.mark.parametrize(
    "rest",
    [
        {"additionalProperties": {"type": "string"}},
        {"patternProperties": {"^[^a]*$": {"type": "string"}}, "additionalProperties": False},
    ],
)
def test_a_name_that_is_listed_comes_once_and_any_other_is_valid_each_time(
    rest: dict[str, Any],
) -> None:
    schema = {"properties": {"a": {"type": "integer"}}, "required": ["a", "z"], **rest}
    matcher = compiled({"type": "object", **schema})
    assert written(matcher, '{"a": 1, "z": "2"}')
    for again in ('"a": 1', '"a": "2"', '"\\u0061": "2"', '"z": "2"', '"b": 1, "b": "2"'):
        assert not written(matcher, f'{{"a": 1, "z": "2", {again}}}'), again
    assert written(matcher, '{"a": 1, "z": "2", "b": "3", "b": "4"}')  # docs/openai.md says so


def test_a_grammars_numbers_are_read_as_they_were_checked() -> None:
    """However many digits they are spelled with."""
    grammar = 'start: %json {"type": "number", "minimum": 0.23086654154098429359}'
    matcher = GRAMMARS.compile(Constraint("grammar", grammar))
    below, least = "0.23086654154098427", repr(0.23086654154098429359)
    assert not written(matcher, below) and written(matcher, least)


def test_each_number_that_is_let_in_is_written_to_its_last_bit() -> None:
    numbers, kept = random.Random(1), 0
    for _ in range(300):
        value = numbers.random() * 10.0 ** numbers.randrange(-30, 15)
        try:
            matcher = compiled({"const": value})
        except RequestError as error:
            assert f"const: {value}: cannot be kept exactly" in str(error)
            continue
        kept += 1
        texts = [f"{value:.{digits}f}" for digits in range(60)]
        assert {float(text) for text in texts if written(matcher, text)} == {value}
    assert kept > 200


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({}, ["[1,2]", "[1, 2]"]),
        ({"whitespace_pattern": "\n?"}, ["[1,2]", "[1,\n2]"]),
        ({"whitespace_flexible": False}, ["[1,2]"]),
    ],
)
def test_spaces_are_those_that_a_schema_asks_for(options: Any, texts: list[str]) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "x-guidance": options}
    matcher = compiled(schema)
    every = ["[1,2]", "[1, 2]", "[1,\n2]", "[1,  2]"]
    assert [text for text in every if written(matcher, text)] == texts
