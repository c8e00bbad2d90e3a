"""A structural tag (JSON, as gateways write it for XGrammar) as a grammar.

Supported: const_string, json_schema, regex, sequence, or, tag, and a list of tags with a separator.
Free text between tags, and tags set off by triggers, are not: they are refused by name.

Invariant: a function of the text alone, each key of which has an effect or is refused; the grammar
then passes the constraint's own checks.
"""

import json
from collections.abc import Callable
from typing import Any

from quire.clients.strict_json import BadJson, read_object
from quire.service.errors import Refusal, invalid_field

FIELD = "sampling_params.structural_tag"
_MAX_BYTES = 256 << 10  # it is read on the event loop
_MAX_DEPTH = 32
_MAX_JSON_DEPTH = 256  # of the whole text, schemas included


def grammar_of(text: str) -> str:
    """The grammar in llguidance's Lark. Raises Refusal, naming what is not supported."""
    size = len(text.encode())
    if size > _MAX_BYTES:
        raise _fault("", f"{size} bytes: at most {_MAX_BYTES}")
    try:
        tag = read_object(text, _MAX_JSON_DEPTH)
    except BadJson as error:
        raise _fault("", str(error)) from error
    if "format" not in tag:
        raise _fault("", "needs a format; structures with triggers are not supported")
    if tag.get("type", "structural_tag") != "structural_tag":
        raise _fault("type", "must be structural_tag")
    _check_keys(tag, ("type", "format"), "")
    return f"start: {_Rules().of(tag['format'], 'format', 0)}\n"


_Writer = Callable[[dict[str, Any], str, int], str]
_FLAGS = ("at_least_one", "stop_after_first")


class _Rules:
    """Each format as an expression."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[_Writer, tuple[str, ...]]] = {  # with a format's own keys
            "const_string": (self._const, ("value",)),
            "json_schema": (self._json, ("json_schema", "style")),
            "regex": (self._regex, ("pattern",)),
            "sequence": (self._sequence, ("elements",)),
            "or": (self._or, ("elements",)),
            "tag": (self._tag, ("begin", "content", "end")),
            "tags_with_separator": (self._tags, ("tags", "separator", *_FLAGS)),
        }

    def of(self, given: Any, where: str, depth: int) -> str:
        """An expression in brackets, so that it may stand anywhere."""
        if not isinstance(given, dict):
            raise _fault(where, "must be a JSON object")
        if depth > _MAX_DEPTH:
            raise _fault(where, f"lies deeper than {_MAX_DEPTH} formats")
        kind = given.get("type")
        if not isinstance(kind, str) or kind not in self._kinds:
            known = ", ".join(self._kinds)
            raise _fault(f"{where}.type", f"{kind!r}: is not supported; {known} are")
        write, keys = self._kinds[kind]
        _check_keys(given, ("type", *keys), f"{where}.")
        return f"({write(given, where, depth + 1)})"

    def _const(self, given: dict[str, Any], where: str, _depth: int) -> str:
        return _quoted(given.get("value"), f"{where}.value")

    def _json(self, given: dict[str, Any], where: str, _depth: int) -> str:
        schema = given.get("json_schema")
        if not isinstance(schema, (dict, bool)):
            raise _fault(f"{where}.json_schema", "must be a JSON schema")
        if given.get("style", "json") != "json":
            raise _fault(f"{where}.style", "must be json")
        return f"%json {json.dumps(schema)}"

    def _regex(self, given: dict[str, Any], where: str, _depth: int) -> str:
        pattern = given.get("pattern")
        if not isinstance(pattern, str) or not pattern or "\n" in pattern:
            raise _fault(f"{where}.pattern", "must be a regular expression on one line")
        return "/" + _escaped_slashes(pattern) + "/"

    def _sequence(self, given: dict[str, Any], where: str, depth: int) -> str:
        return " ".join(self._elements(given, "elements", where, depth))

    def _or(self, given: dict[str, Any], where: str, depth: int) -> str:
        return " | ".join(self._elements(given, "elements", where, depth))

    def _tag(self, given: dict[str, Any], where: str, depth: int) -> str:
        begin = _quoted(given.get("begin"), f"{where}.begin")
        content = self.of(given.get("content"), f"{where}.content", depth)
        ends = given.get("end")
        listed = ends if isinstance(ends, list) else [ends]
        end = " | ".join(_quoted(one, f"{where}.end") for one in listed)
        return f"{begin} {content} ({end})"

    def _tags(self, given: dict[str, Any], where: str, depth: int) -> str:
        tags = " | ".join(self._elements(given, "tags", where, depth))
        separator = _quoted(given.get("separator"), f"{where}.separator")
        at_least_one, stop_after_first = (_flag(given.get(n), f"{where}.{n}") for n in _FLAGS)
        more = "" if stop_after_first else f" ({separator} ({tags}))*"
        least = "" if at_least_one else "?"
        return f"(({tags}){more}){least}"

    def _elements(self, given: dict[str, Any], name: str, where: str, depth: int) -> list[str]:
        listed = given.get(name)
        if not isinstance(listed, list) or not listed:
            raise _fault(f"{where}.{name}", "must be a list, and not empty")
        return [self.of(one, f"{where}.{name}[{i}]", depth) for i, one in enumerate(listed)]


def _check_keys(given: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    """where: the object's name followed by a point, or nothing."""
    for name in given:
        if name not in known:
            raise _fault(f"{where}{name[:80]}", f"is not supported; {', '.join(known)} are")


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool | None):
        raise _fault(where, "must be true or false")
    return bool(value)


def _quoted(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _fault(where, "must be a text")
    return json.dumps(value, ensure_ascii=False).replace(
        "\x7f", r"\u007f"
    )  # Lark's texts hold none


def _escaped_slashes(pattern: str) -> str:
    """A slash would end it; one that is escaped already stays."""
    parts, escaped = [], False
    for character in pattern:
        parts.append("\\/" if character == "/" and not escaped else character)
        escaped = character == "\\" and not escaped
    return "".join(parts)


def _fault(where: str, why: str) -> Refusal:
    return invalid_field(f"{FIELD}.{where}" if where else FIELD, why)
