"""Grammars, in the Lark form that llguidance reads, of answers whose calls are valid.

Invariant: `OutputParser` reads whatever such a grammar lets through as calls of the tools given. If
a tool is held to its schema, the arguments are valid for it. The calls are written as templates
write them: one line break inside the tags, a space behind `,` and `:`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quire.clients import large_json
from quire.service.answers.events import Syntax
from quire.service.answers.hermes import MAX_NAME
from quire.service.answers.schema_types import STRING, allowed_types

_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_NO_GUIDANCE = "x-guidance is not supported for calls, whose spaces are those of templates"
_CALLED = r"""
TEXT: /(.|\n)*/
REST: /(.|\n)*/ & ~/(.|\n)*<tool_call>(.|\n)*/
opening[lazy]: TEXT "<tool_call>"
"""
# Of a bare string in XML: what judges more than its type.
_BARE = frozenset({"type", "description", "title", "default", "examples", "deprecated"})
_OF_OBJECT = _BARE | {"properties", "required", "additionalProperties", "$defs", "definitions"}


Schema = Mapping[str, Any]
Fault = Callable[[Schema], str]  # why no grammar can be made of a schema; empty: it can


class CannotHonour(Exception):
    """No grammar holds a call to this tool's schema. tool: its place among the tools."""

    def __init__(self, tool: int, why: str) -> None:
        super().__init__(why)
        self.tool = tool


@dataclass(frozen=True, slots=True)
class CallableTool:
    """A tool that may be called. strict: a schema that cannot be honoured is an error; otherwise
    such a tool takes any object."""

    name: str
    schema: Schema
    strict: bool = False


def tool_grammar(
    syntax: Syntax,
    tools: Sequence[CallableTool],
    fault: Fault,
    *,
    must_call: bool,
    parallel: bool = True,
    loose: bool = False,
) -> str:
    """must_call: the answer is calls and nothing else; otherwise text may stand around them, and
    tools that are not strict take any object. loose: so they do then, too. fault: judges schemas.
    Raises CannotHonour."""
    write = _hermes if syntax is Syntax.HERMES else _xml
    held = [tool.strict or (must_call and not loose) for tool in tools]
    for i, tool in enumerate(tools):
        if held[i] and "x-guidance" in tool.schema:  # which asks how it is honoured
            raise CannotHonour(i, _NO_GUIDANCE)
    rules = [write(i, tool, held[i], fault) for i, tool in enumerate(tools)]
    names = " | ".join(f"call_{i}" for i in range(len(tools)))
    lines = [
        '%llguidance {"no_forcing": true}',  # or a forced tag would have to be written in pieces
        _start(must_call, parallel),
        f"call: ({names}) {_text('</tool_call>')}",
        *(rule for rule in rules if rule),
    ]
    return "\n".join(lines) + "\n"


def _start(must_call: bool, parallel: bool) -> str:
    if must_call:
        more = r" (/\n?/ opening call)*" if parallel else ""
        return rf"start: /\n{{0,2}}/ opening call{more}" + '\nopening: "<tool_call>"'
    return f"start: (opening call){'*' if parallel else '?'} REST{_CALLED}"


def _text(text: str) -> str:
    """A literal in Lark, which cannot contain DEL as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def _json(schema: Schema) -> str:
    """JSON that is valid for it."""
    return "%json " + large_json.dumps(_spaced(schema), ensure_ascii=False)


def _fault_of(schema: Schema, fault: Fault) -> str:
    if "x-guidance" in schema:
        return _NO_GUIDANCE
    return fault(_spaced(schema))


def _spaced(schema: Schema) -> Schema:
    """JSON as the grammar has it: with the spaces that templates write."""
    return {**schema, "x-guidance": _SPACING}


# ---------------------------------------------------------------- hermes


def _hermes(i: int, tool: CallableTool, held: bool, fault: Fault) -> str:
    schema = dict(tool.schema) if held else dict(_ANY_OBJECT)
    if schema.setdefault("type", "object") != "object":
        if tool.strict:
            raise CannotHonour(i, "arguments are an object: type must be object")
        schema = dict(_ANY_OBJECT)
    why = _fault_of(schema, fault) if held else ""
    if why and tool.strict:
        raise CannotHonour(i, why)
    head = f'\n{{"name": {_text(tool.name)}, "arguments": '
    return f"call_{i}: {_text(head)} {_json(_ANY_OBJECT if why else schema)} {_text('}' + chr(10))}"


# ---------------------------------------------------------------- XML


def _xml(i: int, tool: CallableTool, held: bool, fault: Fault) -> str:
    """Parameters come in the schema's order, those that are required always."""
    head, end = _text(f"\n<function={tool.name}>\n"), _text("</function>\n")
    try:
        if not held:
            raise CannotHonour(i, "is not held to its schema")
        written = list(_parameters(i, tool.schema, fault))
    except CannotHonour:
        if tool.strict:
            raise
        opened, closed = _text("<parameter="), _text("\n</parameter>\n")
        free = f"free_{i}: {opened} /[^<>\\n]{{1,64}}/ {_text('>' + chr(10))} bare_{i}"
        bare = f"bare_{i}[lazy]: /(.|\\n)*/ {closed}"
        return "\n".join([f"call_{i}: {head} free_{i}* {end}", free, bare])
    names = " ".join(name for name, _ in written)
    return "\n".join([f"call_{i}: {head} {names} {end}", *(rule for _, rule in written)])


def _parameters(i: int, schema: Schema, fault: Fault) -> Iterator[tuple[str, str]]:
    """For each parameter, its place in the call's rule, and its own rules."""
    unknown = sorted(schema.keys() - _OF_OBJECT)
    if unknown or schema.get("type", "object") != "object":
        raise CannotHonour(i, f"{(*unknown, 'type')[0]} is not supported for calls in XML")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, Mapping) or not _are_texts(required):
        raise CannotHonour(i, "properties are an object, and required is a list of names")
    lost = [name for name in required if name not in properties]
    if lost:
        raise CannotHonour(i, f"required names {lost[0]!r}, which is no property")
    for j, name in enumerate(properties):
        rule = f"p_{i}_{j}"
        try:
            written = _parameter(rule, name, schema, fault)
        except ValueError as error:
            raise CannotHonour(i, f"properties.{name}{error}") from None
        yield rule + ("" if name in required else "?"), written


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _parameter(rule: str, name: str, schema: Schema, fault: Fault) -> str:
    """Its rules. Raises ValueError."""
    if not name or len(name) > MAX_NAME or any(character in "<>\n" for character in name):
        raise ValueError(": has no place in a tag")
    head, end = _text(f"<parameter={name}>\n"), "\n</parameter>\n"
    described, types = schema["properties"][name], allowed_types(schema, name)
    if "string" not in types:
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        why = _fault_of({**described, **shared}, fault)
        if why:
            raise ValueError(f": {why}")
        return f"{rule}: {head} {_json({**described, **shared})} {_text(end)}"
    if types != STRING or not isinstance(described, Mapping):
        raise ValueError(": a string or something else cannot be told apart in XML")
    words = described.get("enum")
    known = _BARE | {"enum"} if words and _are_texts(words) else _BARE
    unknown = sorted(described.keys() - known)
    if unknown:
        raise ValueError(f".{unknown[0]} is not supported for calls in XML")
    if words:
        return f"{rule}: {head} ({' | '.join(_text(word + end) for word in words)})"
    return f"{rule}: {head} {rule}_bare\n{rule}_bare[lazy]: /(.|\\n)*/ {_text(end)}"
