"""A constraint's text becomes a grammar that llguidance reads.

Invariant: what is too large, too deep or unreadable is refused here, before llguidance sees it: its
parser recurses along chains of rules, and its lexer's work grows with the text.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from llguidance import LLMatcher

from quire.clients import large_json
from quire.engine.request import Constraint
from quire.service.constraints import formats, schema_checks

MAX_BYTES = 1 << 20
MAX_DEPTH = 64  # brackets inside one another
MAX_RULES = 2000  # of a grammar
MAX_LEXEME_BYTES = 32 << 10  # of a regex, a text in a schema, a choice, a line of a grammar
CALLS = "calls"  # the kind of grammars made of tools, whose schemas were checked one by one

# The last one counts. What is forced llguidance looks for to its end, anew for each token: half a
# second each in a{100000}, and for ever in a repetition whose lexeme takes all that its next one
# needs, as in /a+/ "a".
_NO_FORCING = '%llguidance {"no_forcing": true}\n'
_OPTIONS = ("no_forcing", "allow_initial_skip", "ignore_once")  # that a grammar may have
_ANY_OBJECT = {"type": "object"}
_RULE = re.compile(r"^[ \t]*[?!]*[A-Za-z_][^:\n\"/]*:", re.MULTILINE)
# A grammar's texts, special tokens, comments and regexes as llguidance reads them, in which nothing
# is meant; or what is looked for. (What separates in ASCII is a space to Python alone.)
_LEXEME = re.compile(
    r'"(?:\\.|[^"\\])*"?|<(?:[^<>\s]|[\x1c-\x1f])+>|(?://|\#)[^\n]*|/(?:\\.|[^/\\])*/?'
    r"|(?P<json>%(?:json|llguidance))\s*|(?P<temperature>\btemperature\s*=)",
    re.DOTALL,
)
_BRACKET = re.compile(r"[\[\]()]")  # of a regex
# Of JSON: a bracket or a string. A string that is not closed reaches to the end: else the search
# would begin anew at each quote in it.
_PART = re.compile(r'[\[\]{}]|"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
# One space between the parts of a document, or none, unless a schema says what: a weak model would
# go on with spaces.
_SPACES = {"whitespace_pattern": " "}
_OF_SPACES = {"whitespace_pattern", "whitespace_flexible"}


def grammar_of(constraint: Constraint) -> str:
    """What llguidance compiles. Raises ValueError, saying what is wrong with it."""
    kind, text = constraint.kind, constraint.text
    size = len(text.encode())
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes: at most {MAX_BYTES}")
    if kind == "json_schema":
        return _of_schema(text, check_schema(text))
    if kind == "json_object":
        return _lark_of(_ANY_OBJECT)
    if kind == "regex":
        _check_lexemes([text])
        if (len(text) - len(text.rstrip("\\"))) % 2:  # which llguidance would leave out
            raise ValueError("ends with a backslash that escapes nothing")
        _check_depth(_BRACKET.findall(text), "([", ")]")
        made = json.loads(LLMatcher.grammar_from_regex(text))["grammars"][0]["lark_grammar"]
        return f"{made}\n{_NO_FORCING}"
    if kind == "choice":
        texts = json.loads(text)
        _check_lexemes(texts)
        options = " | ".join(json.dumps(option) for option in texts)
        # One lexeme of all: as rules, each were an item of the parser's first row.
        return f"start: CHOICE\nCHOICE: {options}\n{_NO_FORCING}"
    if kind == CALLS:
        return LLMatcher.grammar_from_lark(with_exact_formats(text))
    if kind == "grammar":
        if text.lstrip().startswith("{"):  # llguidance's own form, whose schemas nobody has checked
            raise ValueError("is JSON: must be in the Lark form")
        rules = len(_RULE.findall(text))
        if rules > MAX_RULES:
            raise ValueError(f"{rules} rules: at most {MAX_RULES}")
        _check_lexemes(text.split("\n"))
        for _, inside, _ in _schemas_in(text):
            schema_checks.check(inside)
        return LLMatcher.grammar_from_lark(f"{with_exact_formats(text)}\n{_NO_FORCING}")
    raise ValueError("is not a kind of constraint")


def field_of(kind: str) -> str:
    """What a refusal names."""
    return "chat.tools" if kind == CALLS else f"constraint.{kind}"


def _of_schema(text: str, schema: dict[str, Any] | bool) -> str:
    """schema: what the text says."""
    if formats.are_in(text):
        schema = formats.exact(schema)
    return _lark_of({} if schema is True else schema)


def _lark_of(schema: Any) -> str:
    """In Lark, which llguidance reads beside other threads: while it reads a grammar that is JSON,
    no other can run."""
    options = schema.get("x-guidance", {})
    if isinstance(options, dict):
        spaces = {} if _OF_SPACES & options.keys() else _SPACES
        options = {**spaces, **options}
    made = large_json.dumps({**schema, "x-guidance": options})
    return f"start: %json {made}\n{_NO_FORCING}"


def check_schema(text: str) -> dict[str, Any] | bool:
    """A schema as JSON. Raises ValueError for what llguidance is better not shown."""
    parts = [found[0] for found in _PART.finditer(text)]  # one by one: others are let in between
    _check_lexemes([part for part in parts if part[0] == '"'])
    _check_depth(parts, "[{", "]}")
    try:
        schema = large_json.loads(text, parse_constant=_no_number)
        large_json.dumps(schema, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise ValueError("must be a JSON object, true or false")
    if schema is False:
        raise ValueError("is false, which nothing satisfies")
    schema_checks.check(schema)
    return schema


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=large_json.without_repeats, parse_constant=_no_number)


def _schemas_in(grammar: str) -> Iterator[tuple[int, Any, int]]:
    """Where each schema in it begins, what it says, and where it ends. Raises ValueError, for a
    rule's temperature too."""
    at = 0
    while (found := _LEXEME.search(grammar, at)) is not None:
        at = found.end()
        if found["temperature"]:
            raise ValueError("a rule's temperature is not supported: there is one for an answer")
        if not found["json"]:
            continue
        began = at
        try:
            value, at = _DECODER.raw_decode(grammar, at)
        except json.JSONDecodeError as error:
            raise ValueError(f"{found['json']} without JSON: {error}") from None
        except RecursionError:
            raise ValueError("a schema is too deep") from None
        if found["json"] == "%json":
            yield began, value, at
        else:
            _check_options(value)


def _check_options(options: Any) -> None:
    """What stands behind %llguidance, which passes over what it does not know."""
    for name in options if isinstance(options, dict) else ():
        if name not in _OPTIONS:
            known = ", ".join(_OPTIONS)
            raise ValueError(f"%llguidance: {name[:80]!r} is not supported; {known} are")
        if name == "no_forcing" and options[name] is False:
            raise ValueError("%llguidance: no_forcing: false: must be true, as it is if left out")


def with_exact_formats(grammar: str) -> str:
    """A grammar in Lark, whose schemas mean what `formats` says, and whose numbers are spelled as
    they were checked. Raises ValueError."""
    parts, written = [], 0
    for began, schema, ended in _schemas_in(grammar):
        try:
            exact = formats.exact(schema)
        except RecursionError:
            raise ValueError("a schema is too deep") from None
        parts += [grammar[written:began], large_json.dumps(exact, ensure_ascii=False)]
        written = ended
    return "".join([*parts, grammar[written:]])


def _check_lexemes(lexemes: list[str]) -> None:
    longest = max((len(lexeme.encode()) for lexeme in lexemes), default=0)
    if longest > MAX_LEXEME_BYTES:
        raise ValueError(f"{longest} bytes in one piece: at most {MAX_LEXEME_BYTES}")


def _check_depth(parts: list[str], opening: str, closing: str) -> None:
    """parts: brackets, and others."""
    depth = deepest = 0
    for part in parts:
        depth += (part in opening) - (part in closing)
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise ValueError(f"{deepest} brackets inside one another: at most {MAX_DEPTH}")
