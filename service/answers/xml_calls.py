"""Tool calls as XML: `<function=f><parameter=a>value</parameter></function>`.

Values are bare text. They become JSON by the types of the tool's schema: a string piece by piece as
it comes, anything else once it is complete. A value ends at a `</parameter>` that is followed by
the next parameter or the end of the call; one inside a text does not end it.
"""

from collections.abc import Generator, Mapping
from typing import Any

from quire.service.answers.events import Kind
from quire.service.answers.schema_types import STRING, allowed_types, as_json, quoted
from quire.service.answers.steps import Sink, Steps, Wanted, nowhere

MAX_NAME = 256  # characters of the name of a tool or a parameter

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_CALL_END = "</tool_call>"
_NEXT = (_PARAMETER, _FUNCTION_END, _CALL_END)


def call(steps: Steps, tools: Mapping[str, Mapping[str, Any]]) -> Generator[Wanted, str, bool]:
    """Parse what follows `<tool_call>`. Returns whether it was a call; if not, what is held must be
    read again."""
    if not (yield from steps.expect(_FUNCTION)):
        return False
    name = yield from _name(steps)
    if name is None:
        return False
    steps.begin_call(name)
    steps.emit(Kind.ARGUMENTS, "{")
    schema, before = tools.get(name, {}), ""
    while True:
        steps.sink = nowhere
        tag = yield from steps.one_of(_NEXT)
        steps.sink = steps.say(Kind.TEXT)
        if tag == _PARAMETER:
            parameter = yield from _name(steps)
            if parameter is not None:
                steps.drop()
                steps.emit(Kind.ARGUMENTS, f"{before}{quoted(parameter)}: ")
                yield from _value(steps, allowed_types(schema, parameter))
                before = ", "
                continue
        steps.in_call = False
        if tag not in (_FUNCTION_END, _CALL_END):
            return False
        steps.drop()
        steps.emit(Kind.ARGUMENTS, "}")
        if tag == _FUNCTION_END:
            yield from steps.closing(_CALL_END)
        return True


def _name(steps: Steps) -> Generator[Wanted, str, str | None]:
    """Up to `>`, which is taken too."""
    name = ""
    while len(name) <= MAX_NAME:
        character = yield None
        if character == ">" and name:
            steps.hold(character)
            return name
        if character in "<>\n":
            steps.unread(character)
            return None
        name += character
        steps.hold(character)
    return None


def _value(steps: Steps, types: frozenset[str]) -> Generator[Wanted, str, None]:
    """Parse a value and its closing tag, and nothing after that."""
    if types == STRING:
        steps.emit(Kind.ARGUMENTS, '"')
        yield from _bare(steps, lambda text: steps.emit(Kind.ARGUMENTS, quoted(text)[1:-1]))
        steps.emit(Kind.ARGUMENTS, '"')
        return
    steps.kept = []
    yield from _bare(steps, steps.kept.append)
    value = as_json("".join(steps.kept), types)
    steps.kept = None
    steps.emit(Kind.ARGUMENTS, value)


def _bare(steps: Steps, sink: Sink) -> Generator[Wanted, str, None]:
    """The value as it is written, but for a line break at either end."""
    character = yield None
    if character != "\n":
        steps.unread(character)
    while True:
        yield from steps.before(_PARAMETER_END, sink, most_breaks=1)
        closing, steps.sink = steps.held, nowhere
        tag = yield from steps.one_of(_NEXT)
        behind = steps.held[len(closing) :]
        steps.drop()
        steps.unread(behind)
        if tag is not None:
            return
        sink(closing)
