"""Constraints that are refused: with the field and the reason, before there is any state."""

import json
from typing import Any

import grpc
import pytest
from support.harness import ask, generate, run
from support.pocket_server import pocket

from quire.service.constraints.text_matcher import brief
from quire.v1 import inference_pb2 as pb


def chain(rules: int) -> str:
    """Rules that each lead to the next."""
    middle = "\n".join(f'r{i}: "a" r{i + 1}' for i in range(rules))
    return f'start: r0\n{middle}\nr{rules}: "x"'


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "none": ({}, "constraint", "give json_schema, json_object, regex, grammar or choice"),
    "no object": ({"json_object": False}, "constraint.json_object", "must be true"),
    "no choice": ({"choice": pb.Choice()}, "constraint.choice.options", "is empty"),
    "empty choice": (
        {"choice": pb.Choice(options=["a", ""])},
        "constraint.choice.options[1]",
        "is empty",
    ),
    "choices": (
        {"choice": pb.Choice(options=[str(i) for i in range(10_001)])},
        "constraint.choice.options",
        "10001: at most 10000 texts",
    ),
    "large": (
        {"regex": "a" * ((1 << 20) + 1)},
        "constraint.regex",
        "1048577: at most 1048576 bytes",
    ),
    "long regex": ({"regex": "ab" * 40_000}, "constraint.regex", "at most 32768"),
    "regex": ({"regex": "(a"}, "constraint.regex", "unclosed group"),
    "look-around": ({"regex": "(?=a)a"}, "constraint.regex", "look-around"),
    "deep regex": ({"regex": "(" * 900 + "a" + ")" * 900}, "constraint.regex", "at most 64"),
    "schema": ({"json_schema": "{"}, "constraint.json_schema", "is not JSON"),
    "unclosed": (
        {"json_schema": '"' + "a" * 40_000},
        "constraint.json_schema",
        "40001 bytes in one piece: at most 32768",
    ),
    "schema twice": (
        {"json_schema": '{"type": "object", "type": "string"}'},
        "constraint.json_schema",
        'the key "type" stands twice',
    ),
    "schema twice in a grammar": (
        {"grammar": 'start: %json {"type": "object", "type": "string"}'},
        "constraint.grammar",
        'the key "type" stands twice',
    ),
    "an end alone": (
        {"grammar": "start: <|im_end|>"},
        "constraint.grammar",
        "no token that the request allows satisfies its constraint",
    ),
    "no schemas in a grammar": (
        {"grammar": "start: %json x\n" + "// %json x\n" * 16},
        "constraint.grammar",
        "%json without JSON",
    ),
    "schema behind a text": (
        {"grammar": 'start: "%json [" "," %json {"type": "integer", "multipleOf": 1000003} "]"'},
        "constraint.grammar",
        "multipleOf: 1000003: at most 10000",
    ),
    **{
        f"schema behind {name}": (
            {"grammar": f'start: {before} %json {{"minimum": -1e30, "maximum": -1e20}}'},
            "constraint.grammar",
            "minimum: -1e+30: must be between",
        )
        for name, before in {
            "a text that ends as JSON's would begin": '"%json "',
            "a regex that does": r'/\/%json "/',
            "a regex of lines": '/\n%json "/',
            "a special token": '<">',
            "a special token with what only to Python is a space": '<\x1c\x1f"> |',
            "a comment": '// "\n |',
            "another": "# /\n |",
            "a schema": '%json "%json "',
        }.items()
    },
    "schema kind": ({"json_schema": "[]"}, "constraint.json_schema", "must be a JSON object"),
    "keyword": (
        {"json_schema": '{"type": "array", "uniqueItems": true}'},
        "constraint.json_schema",
        "uniqueItems",
    ),
    "lenient": (
        {"json_schema": '{"x-guidance": {"lenient": true}, "not": {}}'},
        "constraint.json_schema",
        "x-guidance.lenient: what cannot be honoured is refused",
    ),
    "options as a list": (
        {"json_schema": '{"x-guidance": [",", ":", false, " ", false, true], "not": {}}'},
        "constraint.json_schema",
        "x-guidance: must be an object",
    ),
    "options of a part": (
        {"json_schema": '{"properties": {"a": {"x-guidance": {"whitespace_flexible": false}}}}'},
        "constraint.json_schema",
        "x-guidance: only for a whole schema, not for a part of it",
    ),
    "lenient in a grammar": (
        {"grammar": 'start: "a" %json {"x-guidance": {"lenient": true}, "not": {}}'},
        "constraint.grammar",
        "x-guidance.lenient: what cannot be honoured is refused",
    ),
    **{
        f"oneOf as anyOf in a {kind}": (
            {kind: before + '{"x-guidance": {"coerce_one_of": true}, "oneOf": [{}, {}]}'},
            f"constraint.{kind}",
            "x-guidance.coerce_one_of: what cannot be honoured is refused",
        )
        for kind, before in (("json_schema", ""), ("grammar", "start: %json"))
    },
    **{
        f"{name} of a grammar": (
            {"grammar": f'start: %lark {{\n%llguidance {{"{name}": true}}\nstart: "a"\n}}'},
            "constraint.grammar",
            f"%llguidance: '{name}' is not supported",
        )
        for name in ("no_such_option", "allow_invalid_utf8")
    },
    "no options": ({"grammar": "%llguidance x"}, "constraint.grammar", "%llguidance without JSON"),
    "impossible": ({"json_schema": "false"}, "constraint.json_schema", "false"),
    "remote": (
        {"json_schema": '{"$ref": "http://example.com/x.json"}'},
        "constraint.json_schema",
        "example.com",
    ),
    "deep schema": (
        {"json_schema": '{"items":' * 2000 + "true" + "}" * 2000},
        "constraint.json_schema",
        "brackets inside one another: at most 64",
    ),
    "large schema": (
        {"json_schema": json.dumps({"properties": {f"p{i}": {} for i in range(6000)}})},
        "constraint.json_schema",
        "too big",
    ),
    "multiple": (
        {"json_schema": '{"type": "integer", "multipleOf": 1000003}'},
        "constraint.json_schema",
        "multipleOf: 1000003: at most 10000",
    ),
    "multiples": (
        {"json_schema": '{"multipleOf": 97, "allOf": [{"multipleOf": 89}, {"multipleOf": 8.3}]}'},
        "constraint.json_schema",
        "multipleOf: 8.3 and 89 and 97: at most 10000",
    ),
    "multiples that hold together inside one another": (
        {
            "json_schema": '{"multipleOf": 89, "allOf": '
            '[{"multipleOf": 97, "allOf": [{"multipleOf": 103}]}]}'
        },
        "constraint.json_schema",
        "multipleOf: 89 and 97 and 103: at most 10000",
    ),
    "multiple below zero": (
        {"json_schema": '{"type": "integer", "multipleOf": -3}'},
        "constraint.json_schema",
        "multipleOf: -3: must be above 0",
    ),
    "a bound that llguidance dies of": (
        {"json_schema": '{"type": "integer", "minimum": -1e30, "maximum": -1e20}'},
        "constraint.json_schema",
        "minimum: -1e+30: must be between -9007199254740992 and 9007199254740992",
    ),
    **{
        f"a value that llguidance dies of, or rounds: {schema}": (
            {"json_schema": schema},
            "constraint.json_schema",
            f"{schema[2:].partition(chr(34))[0]}: {number}: must be between",
        )
        for schema, number in (
            ('{"const": -9223372036854775808}', -(2**63)),
            ('{"enum": ["a", -9223372036854775807, 1]}', 1 - 2**63),
            ('{"const": {"a": [9007199254740993]}}', 2**53 + 1),
            ('{"enum": [[{"b": -1e300}]]}', -1e300),
        )
    },
    "a value behind a reference": (
        {"json_schema": '{"properties": {"const": -9223372036854775808}, "$ref": "#/properties"}'},
        "constraint.json_schema",
        "$ref: '#/properties': leads to several schemas",
    ),
    **{
        f"a reference to {where}": (
            {"json_schema": json.dumps({**inside, "$ref": reference})},
            "constraint.json_schema",
            f"$ref: '{reference}': leads to a value, not to a schema",
        )
        for where, reference, inside in (
            ("a default", "#/default", {"default": {"type": "string", "format": "date"}}),
            ("a const in a property", "#/properties/const/const", {}),
            ("an enum in other letters", "#/%65num/0", {"enum": [{"minimum": -1e30}]}),
            ("an unknown keyword's", "#/x/examples/0", {"x": {"examples": [{}]}}),
        )
    },
    **{
        f"more names than can be told apart: {more}": (
            {"json_schema": json.dumps({"type": "object", "minProperties": 2, **more})},
            "constraint.json_schema",
            "minProperties: 2: at most 1, one more than `required` names",
        )
        for more in ({}, {"patternProperties": {"^a": {}}}, {"allOf": [{"properties": {"a": {}}}]})
    },
    **{
        f"a number whose last bit would change: {name}": (
            {"json_schema": json.dumps({name: value})},
            "constraint.json_schema",
            f"{name}: 123456789.12345679: cannot be kept exactly",
        )
        for name, value in (
            ("const", {"a": [123456789.12345679]}),
            ("enum", [1, 123456789.12345679]),
            ("minimum", 123456789.12345679),
        )
    },
    **{
        f"what would be forced, {where}": (
            {"grammar": grammar},
            "constraint.grammar",
            "%llguidance: no_forcing: false: must be true",
        )
        for where, grammar in {
            "before": '%llguidance {"no_forcing": false}\nstart: /a+/ "ab"',
            "behind": 'start: /a+/ "a"\n%llguidance {"no_forcing": false}',
            "inside": 'start: %lark {\n%llguidance {"no_forcing": false}\nstart: /a+/ "a"\n}',
        }.items()
    },
    "a bound in a grammar": (
        {"grammar": 'start: %json {"items": {"exclusiveMaximum": 9007199254740993}}'},
        "constraint.grammar",
        "exclusiveMaximum: 9007199254740993: must be between",
    ),
    "a grammar of JSON": (
        {"grammar": '\n {"grammars": [{"json_schema": {"multipleOf": 1000003}}]}'},
        "constraint.grammar",
        "is JSON: must be in the Lark form",
    ),
    "an end that is escaped": ({"regex": "a\\"}, "constraint.regex", "ends with a backslash"),
    "a rule's temperature": (
        {"grammar": "start: x\nx[max_tokens=3, temperature=0.7]: /a+/"},
        "constraint.grammar",
        "temperature is not supported",
    ),
    **{
        f"a rule's temperature behind {name}": (
            {"grammar": f"start: x{before}temperature = 0.7]: /a+/"},
            "constraint.grammar",
            "temperature is not supported",
        )
        for name, before in {
            "a text": '\nx[stop="]", ',
            "a regex": '\nx[stop=/]"/, ',
            "a space": "\nx [",
            "a name with a dash": "-y\nx-y[",
        }.items()
    },
    "schema in a grammar": (
        {"grammar": 'start: "a" %json {"items": {"multipleOf": 99991}}'},
        "constraint.grammar",
        "multipleOf: 99991: at most 10000",
    ),
    "patterns": (
        {"json_schema": json.dumps({"patternProperties": {f"^{i}$": {} for i in range(65)}})},
        "constraint.json_schema",
        "patternProperties: 65: at most 64",
    ),
    "endless": ({"json_schema": '{"$ref": "#"}'}, "constraint.json_schema", "nothing that ends"),
    "grammar": ({"grammar": "start: nothing"}, "constraint.grammar", "nothing"),
    "long chain": ({"grammar": chain(20_000)}, "constraint.grammar", "at most 2000"),
    "deep grammar": (
        {"grammar": "start: " + "(" * 3000 + '"a"' + ")" * 3000},
        "constraint.grammar",
        "nested",
    ),
}


def test_each_is_refused_by_its_field_and_its_reason_and_leaves_nothing() -> None:
    async def test() -> None:
        async with pocket() as running:
            for name, (kind, field, words) in REFUSED.items():
                request = ask([5, 6], max_tokens=4, constraint=pb.Constraint(**kind))
                answer = await generate(running, request)
                assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, name
                assert field in answer.violations, (name, answer.violations)
                assert words in answer.violations[field], (name, answer.violations)
            stats = await running.idle()
            assert stats.requests.accepted == 0

    run(test)


@pytest.mark.parametrize("grammar", ['start: /a+/ "a"+', "start: /a+/{2,} // without an end"])
def test_a_grammar_that_forces_text_without_an_end_holds_nobody_up(grammar: str) -> None:
    async def test() -> None:
        async with pocket() as running:
            request = ask([5, 6], max_tokens=6, constraint=pb.Constraint(grammar=grammar))
            answer = await generate(running, request)
            assert answer.code is grpc.StatusCode.OK, answer.details
            assert set(answer.text()) == {"a"}

    run(test)


def test_a_fault_of_llguidance_is_told_without_where_in_it() -> None:
    assert brief("panic: assertion failed: a == b\n<backtrace>\n  0: <unknown>") == (
        "panic: assertion failed: a == b"
    )


@pytest.mark.parametrize("rules", [1500])
def test_a_chain_that_is_let_in_is_compiled_and_walked(rules: int) -> None:
    async def test() -> None:
        async with pocket() as running:
            request = ask([5, 6], max_tokens=4, constraint=pb.Constraint(grammar=chain(rules)))
            answer = await generate(running, request)
            assert answer.code is grpc.StatusCode.OK, answer.details
            assert set(answer.text()) == {"a"}

    run(test)
