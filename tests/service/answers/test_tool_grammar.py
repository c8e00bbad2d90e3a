"""Grammars of valid calls, walked by llguidance token by token with Pocket's tokenizer."""

import functools
import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from support.answer_reference import joined

from quire.engine.request import Constraint
from quire.service.answers import tool_grammar as written
from quire.service.answers.events import Family, Kind, Reading, Syntax
from quire.service.answers.parser import OutputParser, is_name
from quire.service.answers.schema_types import allowed_types
from quire.service.answers.tool_grammar import CallableTool, CannotHonour
from quire.service.constraints.grammars import Grammars
from quire.service.constraints.tags import tags_as_text
from quire.service.errors import Refusal
from quire.service.models import pocket
from quire.service.rpc import tool_constraint
from quire.service.rpc.constraints import Compiler
from quire.service.text.thinking import Thinking
from quire.service.text.tokenizer import load
from quire.v1 import inference_pb2 as pb

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Where."},
        "days": {"type": "integer", "minimum": 1},
        "units": {"type": "string", "enum": ["c", "f"]},
        "at": {"$ref": "#/$defs/point"},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"point": {"type": "array", "items": {"type": "number"}}},
}
STRICT = CallableTool("wetter-é", SCHEMA, strict=True)
FREE = CallableTool("free", {"properties": {"x": {"type": "string"}}, "unevaluatedItems": 3})
UNSUPPORTED = {"type": "object", "properties": {}, "unevaluatedProperties": {"type": "string"}}


GRAMMARS = Grammars()


def tool_grammar(syntax: Syntax, tools: list[CallableTool], **choices: bool) -> str:
    return written.tool_grammar(syntax, tools, GRAMMARS.schema_fault, **choices)  # type: ignore[arg-type]


@functools.cache
def compiler() -> Compiler:
    return Compiler(load(pocket.directory(), 4096), 4096, (2,))


def constraint_of(chat: pb.Chat, family: Family | None) -> Constraint | None:
    return tool_constraint.constraint_of(chat, family, compiler(), Thinking.NONE)


@functools.cache
def tokenizer() -> LLTokenizer:
    return LLTokenizer(tags_as_text((pocket.directory() / "tokenizer.json").read_text())[0])


def accepts(grammar: str, text: str) -> bool:
    """Whether every token of it may follow, and it may end there."""
    matcher = LLMatcher(tokenizer(), grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    for token in tokenizer().tokenize_str(text):
        if not matcher.validate_tokens([token]):
            return False
        assert matcher.consume_token(token)
    return bool(matcher.is_accepting())


def write(syntax: Syntax, name: str, arguments: dict[str, Any]) -> str:
    if syntax is Syntax.HERMES:
        inside = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
        return f"<tool_call>\n{inside}\n</tool_call>"
    lines = [
        f"<parameter={k}>\n{v if isinstance(v, str) else json.dumps(v)}\n</parameter>\n"
        for k, v in arguments.items()
    ]
    return f"<tool_call>\n<function={name}>\n{''.join(lines)}</function>\n</tool_call>"


GOOD: list[dict[str, Any]] = [
    {"city": 'Köln 🎉 "<b>"'},
    {"city": "a\nb", "days": 3, "units": "f", "at": [1, 2.5]},
    {"city": "", "units": "c"},
]
BAD: list[dict[str, Any]] = [
    {},
    {"days": 3},
    {"city": "x", "days": "three"},
    {"city": "x", "days": 0},
    {"city": "x", "units": "k"},
    {"city": "x", "other": 1},
    {"city": "x", "at": {}},
]


@pytest.mark.parametrize("syntax", Syntax)
@pytest.mark.parametrize("must_call", [True, False])
def test_valid_calls_pass_and_are_read_as_such(syntax: Syntax, must_call: bool) -> None:
    grammar = tool_grammar(syntax, [STRICT, FREE], must_call=must_call)
    reading = Reading(syntax, tools={STRICT.name: SCHEMA})
    for arguments in GOOD:
        call = write(syntax, STRICT.name, arguments)
        assert accepts(grammar, call), call
        assert accepts(grammar, f"{call}\n{call}")
        events = OutputParser(reading).feed(call)
        assert events[0].kind is Kind.CALL
        ((name, said),) = joined(events).calls
        assert (name, json.loads(said)) == (STRICT.name, arguments)


@pytest.mark.parametrize("syntax", Syntax)
def test_a_word_that_lark_has_no_place_for_is_written(syntax: Syntax) -> None:
    schema = {"properties": {"key": {"enum": ["\x7f", "tab\t"]}}}
    grammar = tool_grammar(syntax, [CallableTool("press", schema, strict=True)], must_call=True)
    for key in ("\x7f", "tab\t"):
        call = write(syntax, "press", {"key": key})
        if syntax is Syntax.HERMES:
            call = call.replace("\x7f", r"\u007f")
        assert accepts(grammar, call), call


@pytest.mark.parametrize("syntax", Syntax)
def test_tools_are_called_by_every_name_that_is_let_in(syntax: Syntax) -> None:
    names = ["a b", 'a"b\\c', "server.tool:1/2", "取天气", "x" * 254]
    assert all(is_name(name) for name in names)
    grammar = tool_grammar(syntax, [CallableTool(name, {}) for name in names], must_call=True)
    for name in names:
        call = write(syntax, name, {})
        assert accepts(grammar, call), call
        assert joined(OutputParser(Reading(syntax)).feed(call)).calls[0][0] == name


@pytest.mark.parametrize("syntax", Syntax)
@pytest.mark.parametrize("must_call", [True, False])
def test_invalid_calls_do_not_pass(syntax: Syntax, must_call: bool) -> None:
    grammar = tool_grammar(syntax, [STRICT, FREE], must_call=must_call)
    for arguments in BAD:
        assert not accepts(grammar, write(syntax, STRICT.name, arguments)), arguments
    assert not accepts(grammar, write(syntax, "unknown", {}))
    call = write(syntax, STRICT.name, GOOD[0])
    assert not accepts(grammar, call.removesuffix("</tool_call>"))
    assert not accepts(grammar, call.replace("</tool_call>", "</tool>"))


@pytest.mark.parametrize("syntax", Syntax)
def test_text_stands_around_calls_only_where_none_has_to_be_made(syntax: Syntax) -> None:
    call = write(syntax, STRICT.name, GOOD[0])
    free = tool_grammar(syntax, [STRICT], must_call=False)
    forced = tool_grammar(syntax, [STRICT], must_call=True)
    for text in (f"Let me see.\n{call}", f"{call}\nso", "no call: 1 < 2 <tool", ""):
        assert accepts(free, text)
        assert not accepts(forced, text)
    assert accepts(forced, f"\n\n{call}")
    assert not accepts(free, "a <tool_call> b")


@pytest.mark.parametrize("syntax", Syntax)
@pytest.mark.parametrize("must_call", [True, False])
def test_one_call_alone(syntax: Syntax, must_call: bool) -> None:
    call = write(syntax, STRICT.name, GOOD[0])
    grammar = tool_grammar(syntax, [STRICT], must_call=must_call, parallel=False)
    assert accepts(grammar, call)
    assert not accepts(grammar, call + call)
    assert not accepts(grammar, f"{call}\n{call}")


@pytest.mark.parametrize("syntax", Syntax)
@pytest.mark.parametrize("must_call", [True, False])
def test_a_tool_that_is_not_strict_is_not_refused_for_its_schema(
    syntax: Syntax, must_call: bool
) -> None:
    grammar = tool_grammar(syntax, [STRICT, FREE], must_call=must_call)
    assert accepts(grammar, write(syntax, "free", {"y": "a < b", "z": [1]}))
    assert accepts(grammar, write(syntax, "free", {}))
    for schema in (UNSUPPORTED, {"type": "array"}):
        with pytest.raises(CannotHonour) as caught:
            tool_grammar(
                syntax, [FREE, CallableTool("f", schema, strict=True)], must_call=must_call
            )
        assert caught.value.tool == 1


def test_what_xml_cannot_say_is_refused_for_strict_tools() -> None:
    for described in (
        {"type": ["string", "integer"]},
        {"type": "string", "pattern": "a+"},
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
    ):
        tool = CallableTool("f", {"properties": {"x": described}}, strict=True)
        with pytest.raises(CannotHonour, match=r"^properties\.x"):
            tool_grammar(Syntax.XML, [tool], must_call=True)


@pytest.mark.parametrize(
    "schema",
    [
        {"required": [["a"]]},
        {"required": [{}]},
        {"properties": {"a": {"type": "string", "enum": [5]}}},
        {"properties": {"a": {"type": "string", "enum": 5}}},
        {"properties": {"a": {"type": "string", "enum": "ab"}}},
    ],
)
def test_names_and_words_that_are_no_texts_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(CannotHonour):
        tool_grammar(Syntax.XML, [CallableTool("f", schema, strict=True)], must_call=True)


class Part(dict[str, Any]):
    """A part of a schema that counts how often it is looked at."""

    looks = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.looks += key == "type"
        return super().get(key, default)


def test_a_schema_that_leads_back_to_itself_is_looked_at_once() -> None:
    """Each time a parameter is written: with as few as 24 references it took seconds."""
    part = Part(anyOf=[{"$ref": "#/properties/a"}] * 5 + [{"type": "integer"}])
    assert allowed_types({"properties": {"a": part}}, "a") == {"integer"}
    assert part.looks == 1


def test_a_chat_says_whether_it_needs_a_constraint() -> None:
    schema = json.dumps(SCHEMA)
    tools = [pb.Tool(name="other"), pb.Tool(name="weather", parameters_json=schema)]
    family = Family(Syntax.HERMES, thinks=True)
    assert constraint_of(pb.Chat(tools=tools), family) is None
    hidden = pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_NONE)
    strict = [tools[0], pb.Tool(name="weather", parameters_json=schema, strict=True)]
    assert constraint_of(pb.Chat(tools=strict, tool_choice=hidden), family) is None
    assert constraint_of(pb.Chat(tools=strict), family) is not None
    named = pb.Chat(tools=tools, tool_choice=pb.ToolChoice(name="weather"))
    constraint = constraint_of(named, family)
    assert constraint is not None
    assert accepts(constraint.text, write(Syntax.HERMES, "weather", GOOD[0]))
    assert not accepts(constraint.text, write(Syntax.HERMES, "other", {}))
    with pytest.raises(Refusal):
        constraint_of(named, None)


def test_a_strict_schema_that_cannot_be_honoured_is_named() -> None:
    bad = pb.Tool(name="f", parameters_json=json.dumps(UNSUPPORTED), strict=True)
    chat = pb.Chat(tools=[pb.Tool(name="other"), bad])
    with pytest.raises(Refusal, match=r"chat\.tools\[1\]\.parameters_json"):
        constraint_of(chat, Family(Syntax.HERMES, thinks=False))


def chained(rules: int) -> dict[str, Any]:
    """A schema that leads from one definition to the next."""
    chain: dict[str, Any] = {f"r{i}": {"$ref": f"#/$defs/r{i + 1}"} for i in range(rules)}
    end = {f"r{rules}": {"type": "integer"}}
    return {"type": "object", "properties": {"x": {"$ref": "#/$defs/r0"}}, "$defs": chain | end}


MANY: dict[str, Any] = {
    "type": "object",
    "properties": {f"key_{i}": {"type": "integer"} for i in range(4000)},
}
MULTIPLE = {"type": "object", "properties": {"x": {"multipleOf": 99991, "type": "integer"}}}
REASONS = {
    "chain": (chained(20_000), "grammar size"),
    "multiple": (MULTIPLE, "multipleOf: 99991: at most 10000"),
    "spaces": ({"x-guidance": {"item_separator": ";"}}, "x-guidance is not supported for calls"),
    "piece": ({"type": "object", "required": ["x" * 33_000]}, "33002 bytes in one piece"),
}


@pytest.mark.parametrize("name", REASONS)
def test_hostile_schemas_of_strict_tools_are_refused_by_name_in_one_line(name: str) -> None:
    """A chain of references once took the process with it: it ran out of stack."""
    schema, words = REASONS[name]
    tool = pb.Tool(name="f", parameters_json=json.dumps(schema), strict=True)
    chat = pb.Chat(tools=[pb.Tool(name="other"), tool])
    with pytest.raises(Refusal) as caught:
        constraint_of(chat, Family(Syntax.HERMES, thinks=False))
    (violation,) = caught.value.violations
    assert violation.field == "chat.tools[1].parameters_json"
    assert words in violation.description
    assert "\n" not in violation.description and "%json" not in violation.description


@pytest.mark.parametrize("syntax", Syntax)
def test_spaces_of_its_own_are_refused_of_a_tool_that_is_not_strict_too(syntax: Syntax) -> None:
    tool = pb.Tool(name="f", parameters_json=json.dumps(REASONS["spaces"][0]))
    required = pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED)
    with pytest.raises(Refusal, match="x-guidance is not supported for calls"):
        constraint_of(pb.Chat(tools=[tool], tool_choice=required), Family(syntax, thinks=False))


@pytest.mark.parametrize("name", sorted(REASONS.keys() - {"spaces"}))
def test_the_same_schemas_are_passed_over_where_tools_are_not_strict(name: str) -> None:
    tool = pb.Tool(name="f", parameters_json=json.dumps(REASONS[name][0]))
    required = pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED)
    found = constraint_of(
        pb.Chat(tools=[tool], tool_choice=required), Family(Syntax.HERMES, thinks=False)
    )
    assert found is not None
    assert accepts(found.text, write(Syntax.HERMES, "f", {"any": 1}))


def test_tools_that_are_too_much_together_take_any_object_unless_they_are_strict() -> None:
    schema = {"type": "object", "properties": {f"k{i}": {"type": "integer"} for i in range(400)}}
    text = json.dumps(schema)
    required = pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED)
    family = Family(Syntax.HERMES, thinks=False)
    tools = [pb.Tool(name=f"tool_{i}", parameters_json=text) for i in range(12)]
    found = constraint_of(pb.Chat(tools=tools, tool_choice=required), family)
    assert found is not None and "k399" not in found.text
    for tool in tools:
        tool.strict = True
    with pytest.raises(Refusal) as caught:
        constraint_of(pb.Chat(tools=tools, tool_choice=required), family)
    assert [violation.field for violation in caught.value.violations] == ["chat.tools"]
