"""The slow twin of quire.service.answers.parser: reads whole answers, by regular expressions."""

import json
import re
from dataclasses import dataclass, field

from quire.service.answers.events import Event, Kind, Reading, Syntax
from quire.service.answers.schema_types import allowed_types, as_json

_SPACE = r"[ \t\n\r]*"
_NAME = r'("(?:[^"\\<\n]|\\[^<\n])*")'
_NAME_FIRST = re.compile(
    rf'{_SPACE}\{{{_SPACE}"name"{_SPACE}:{_SPACE}{_NAME}{_SPACE}'
    rf'(?:\}}|(,){_SPACE}"arguments"{_SPACE}:{_SPACE}(?=\{{))'
)
_ARGUMENTS_FIRST = re.compile(rf'{_SPACE}\{{{_SPACE}"arguments"{_SPACE}:{_SPACE}(?=\{{)')
_NAME_SECOND = re.compile(rf'{_SPACE},{_SPACE}"name"{_SPACE}:{_SPACE}{_NAME}{_SPACE}\}}')
_TOKEN = re.compile(r'[ \t\n\r]+|"(?:[^"\\]|\\(?s:.))*"|[{}\[\],:]|[^ \t\n\r"{}\[\],:]+')
_FUNCTION = re.compile(rf"{_SPACE}<function=([^<>\n]{{1,256}})>")
_PARAMETER = re.compile(rf"{_SPACE}<parameter=([^<>\n]{{1,256}})>")
_NEXT = ("<parameter=", "</function>", "</tool_call>")
_VALUE_END = re.compile(rf"\n?</parameter>(?={_SPACE}(?:{'|'.join(_NEXT)}))")
_FOLLOWS = {
    "": "{",
    "{": '"}',
    "[": '"{[]x',
    ",": '"{[x',
    ":": '"{[x',
    "value": ",:}]",
}


@dataclass
class Whole:
    """An answer as it was read."""

    reasoning: str = ""
    text: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)


def joined(events: list[Event]) -> Whole:
    """What events say together."""
    whole = Whole()
    for event in events:
        if event.kind is Kind.REASONING:
            whole.reasoning += event.text
        elif event.kind is Kind.TEXT:
            whole.text += event.text
        elif event.kind is Kind.CALL:
            assert event.call == len(whole.calls)
            whole.calls.append((event.text, ""))
        else:
            name, arguments = whole.calls[event.call]
            whole.calls[event.call] = (name, arguments + event.text)
    return whole


def read(raw: str, reading: Reading) -> Whole:
    """The whole answer at once."""
    whole, rest = Whole(), raw
    if reading.thinks:
        opened = re.match(rf"{_SPACE}<think>\n*", rest)
        if opened is not None:
            rest = rest[opened.end() :]
        elif reading.thinking and re.fullmatch(_SPACE + _cut("<think>"), rest):
            return Whole(reasoning=rest)
        elif reading.thinking:
            rest = rest.lstrip("\n")
        if opened is not None or reading.thinking:
            thoughts, _, rest = _around(rest, "</think>")
            whole.reasoning = thoughts
    while reading.syntax is not None and len(whole.calls) != reading.most_calls:
        before, tag, rest = _around(rest, "<tool_call>", after=False)
        whole.text += before
        if not tag:
            return whole
        read_call = _hermes if reading.syntax is Syntax.HERMES else _xml
        following = read_call(rest, whole, reading)
        if following is None:
            whole.text += tag
        else:
            rest = following
    whole.text += rest
    return whole


def _around(text: str, tag: str, *, after: bool = True) -> tuple[str, str, str]:
    """What stands before a tag, the tag with its line breaks, and what stands behind it."""
    found = re.search(rf"\n*{tag}" + (r"\n*" if after else ""), text)
    if found is None:
        return text, "", ""
    return text[: found.start()], found.group(), text[found.end() :]


def _cut(tag: str) -> str:
    """A pattern of all proper beginnings of a tag."""
    return "(?:" + "|".join(re.escape(tag[:i]) for i in range(len(tag) - 1, -1, -1)) + ")"


# ---------------------------------------------------------------- hermes


def _hermes(rest: str, whole: Whole, reading: Reading) -> str | None:
    """What follows the call, or None where there is none."""
    del reading
    head = _NAME_FIRST.match(rest)
    if head is not None:
        name = _name(head[1])
        if name is None:
            return None
        rest = rest[head.end() :]
        if head[2] is None:
            whole.calls.append((name, "{}"))
            return _behind(rest)
        end, how = _object(rest)
        if how == "broken":
            closing = re.search("</tool_call>", rest[end:])
            stop = len(rest) if closing is None else end + closing.start()
            whole.calls.append((name, rest[:stop]))
            return rest[stop:].removeprefix("</tool_call>").lstrip("\n")
        whole.calls.append((name, rest[:end]))
        rest = rest[end:]
        if re.fullmatch(_SPACE, rest):
            return ""
        closing = re.match(rf"{_SPACE}\}}", rest)
        return _behind(rest if closing is None else rest[closing.end() :])
    head = _ARGUMENTS_FIRST.match(rest)
    if head is None:
        return None
    rest = rest[head.end() :]
    end, how = _object(rest)
    second = _NAME_SECOND.match(rest, end) if how == "whole" else None
    name = None if second is None else _name(second[1])
    if second is None or name is None:
        return None
    whole.calls.append((name, rest[:end]))
    return _behind(rest[second.end() :])


def _name(written: str) -> str | None:
    try:
        name = str(json.loads(written))
        name.encode()
    except ValueError:
        return None
    return name if name and len(written) <= 257 else None


def _behind(rest: str) -> str:
    """What follows the closing tag, which may be left out, or cut off."""
    if re.fullmatch(_SPACE + _cut("</tool_call>"), rest):
        return ""
    closing = re.match(rf"{_SPACE}</tool_call>", rest)
    return (rest if closing is None else rest[closing.end() :]).lstrip("\n")


def _object(text: str) -> tuple[int, str]:
    """Where an object ends, and whether it is whole, cut or broken there."""
    opened, before, at = "", "", 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:  # a string without an end
            return (len(text), "cut") if '"' in _FOLLOWS[before] else (at, "broken")
        word = token.group()
        at = token.end()
        if word.isspace() and word.strip(" \t\n\r") == "":
            continue
        sort = word if word in "{}[],:" else '"' if word[0] == '"' else "x"
        if sort not in _FOLLOWS[before]:
            return token.start(), "broken"
        if sort in "}]":
            if opened[-1] + sort not in ("{}", "[]"):
                return token.start(), "broken"
            opened = opened[:-1]
            if not opened:
                return at, "whole"
        if sort in "{[":
            opened += sort
        before = "value" if sort in '}]"x' else sort
    return len(text), "cut"


# ---------------------------------------------------------------- XML


def _xml(rest: str, whole: Whole, reading: Reading) -> str | None:
    """What follows the call, or None where there is none."""
    head = _FUNCTION.match(rest)
    if head is None:
        return None
    schema = (reading.tools or {}).get(head[1], {})
    written, rest, comma = "{", rest[head.end() :], ""

    def end(arguments: str, following: str) -> str:
        whole.calls.append((head[1], arguments))
        return following

    while True:
        parameter = _PARAMETER.match(rest)
        if parameter is None:
            break
        rest = rest[parameter.end() :].removeprefix("\n")
        types = allowed_types(schema, parameter[1])
        written += f"{comma}{json.dumps(parameter[1], ensure_ascii=False)}: "
        comma = ", "
        found = _VALUE_END.search(rest)
        if found is None:
            tail = rf"\n?</parameter>{_SPACE}(?:{'|'.join(_cut(tag) for tag in _NEXT)})\Z"
            cut = re.search(tail, rest)
            value = rest if cut is None else rest[: cut.start()]
            bare = json.dumps(value, ensure_ascii=False)[:-1]
            return end(written + (bare if types == {"string"} else value), "")
        value = rest[: found.start()]
        written += (
            json.dumps(value, ensure_ascii=False) if types == {"string"} else as_json(value, types)
        )
        rest = rest[found.end() :]
    if any(re.fullmatch(_SPACE + _cut(tag), rest) for tag in _NEXT):
        return end(written, "")
    closing = re.match(rf"{_SPACE}(</function>|</tool_call>)", rest)
    if closing is None:
        return end(written, rest)
    rest = rest[closing.end() :]
    return end(written + "}", _behind(rest) if closing[1] == "</function>" else rest.lstrip("\n"))
