"""A constraint's text becomes a grammar that llguidance reads.

Invariant: what is too large, too deep or unreadable is refused here, before llguidance sees it: its
parser recurses along chains of rules, and its lexer's work grows with the text.
"""

import json
import re
from typing import Any

from llguidance import LLMatcher

from quire.engine.errors import RequestError
from quire.engine.request import Constraint

MAX_BYTES = 1 << 20
MAX_DEPTH = 64  # brackets inside one another
MAX_RULES = 2000  # of a grammar
MAX_LEXEME_BYTES = 32 << 10  # of a regex, a text in a schema, a choice, a line of a grammar

_ANY_OBJECT = '{"type": "object"}'
_RULE = re.compile(r"^[ \t]*[?!]*[A-Za-z_][^:\n\"/]*:", re.MULTILINE)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
# One space between the parts of a document, or none: more, and a weak model goes on with it.
_JSON: Any = {"lenient": False, "whitespace_pattern": " "}


def grammar_of(constraint: Constraint) -> str:
    """What llguidance compiles. Raises RequestError, naming the field."""
    kind, text = constraint.kind, constraint.text
    field = f"constraint.{kind}"
    size = len(text.encode())
    if size > MAX_BYTES:
        raise RequestError(field, f"{size} bytes: at most {MAX_BYTES}")
    if kind == "json_schema":
        return _of_schema(field, text)
    if kind == "json_object":
        return LLMatcher.grammar_from_json_schema(_ANY_OBJECT, overrides=_JSON)
    if kind == "regex":
        _check_lexemes(field, [text])
        _check_depth(field, text, "([", ")]")
        return LLMatcher.grammar_from_regex(text)
    if kind == "choice":
        texts = json.loads(text)
        _check_lexemes(field, texts)
        options = " | ".join(json.dumps(option) for option in texts)
        return LLMatcher.grammar_from_lark(f"start: {options}")
    if kind == "grammar":
        rules = len(_RULE.findall(text))
        if rules > MAX_RULES:
            raise RequestError(field, f"{rules} rules: at most {MAX_RULES}")
        _check_lexemes(field, text.split("\n"))
        return LLMatcher.grammar_from_lark(text)
    raise RequestError("constraint", f"{kind!r} is not a kind of constraint")


def _of_schema(field: str, text: str) -> str:
    _check_lexemes(field, _STRING.findall(text))
    _check_depth(field, _STRING.sub("", text), "[{", "]}")
    try:
        schema = json.loads(text)
        json.dumps(schema, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise RequestError(field, f"is not JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise RequestError(field, "must be a JSON object, true or false")
    if schema is False:
        raise RequestError(field, "is false, which nothing satisfies")
    return LLMatcher.grammar_from_json_schema("{}" if schema is True else text, overrides=_JSON)


def _check_lexemes(field: str, lexemes: list[str]) -> None:
    longest = max((len(lexeme.encode()) for lexeme in lexemes), default=0)
    if longest > MAX_LEXEME_BYTES:
        raise RequestError(field, f"{longest} bytes in one piece: at most {MAX_LEXEME_BYTES}")


def _check_depth(field: str, text: str, opening: str, closing: str) -> None:
    depth = deepest = 0
    for bracket in re.findall(r"[\[\](){}]", text):
        depth += (bracket in opening) - (bracket in closing)
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise RequestError(field, f"{deepest} brackets inside one another: at most {MAX_DEPTH}")
