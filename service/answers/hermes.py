"""Calls as JSON: `{"name": "f", "arguments": {"a": 1}}`, in either order.

The arguments come out as the JSON text that the model wrote, to the letter.
"""

import json
import re
from collections.abc import Generator

from quire.service.answers.events import Kind
from quire.service.answers.json_scanner import JsonObject
from quire.service.answers.steps import Sink, Steps, Wanted

MAX_NAME = 256  # characters of a tool's name, as it is written

_CALL_END = "</tool_call>"
_NAME, _ARGUMENTS = '"name"', '"arguments"'
_PLAIN = re.compile(r"[^<]+")


def call(steps: Steps) -> Generator[Wanted, str, bool]:
    """Behind `<tool_call>`. Whether the call was read; if not, what is held is to be read again."""
    if not (yield from steps.expect("{")):
        return False
    first = yield from steps.one_of((_NAME, _ARGUMENTS))
    if first is None or not (yield from steps.expect(":")):
        return False
    if first == _NAME:
        return (yield from _name_first(steps))
    return (yield from _arguments_first(steps))


def _name_first(steps: Steps) -> Generator[Wanted, str, bool]:
    name = yield from _name(steps)
    if name is None:
        return False
    separator = yield from steps.one_of((",", "}"))
    if separator == "}":  # no arguments are none, not an empty text
        steps.begin_call(name)
        steps.emit(Kind.ARGUMENTS, "{}")
        return (yield from _closing_tag(steps))
    if separator is None or not (yield from steps.expect(_ARGUMENTS)):
        return False
    if not (yield from steps.expect(":")) or (yield from steps.space()) != "{":
        return False
    steps.begin_call(name)
    whole = yield from _object(steps, steps.say(Kind.ARGUMENTS))
    if not whole:
        return (yield from _broken(steps))
    return (yield from _closing(steps))


def _arguments_first(steps: Steps) -> Generator[Wanted, str, bool]:
    """They are held until the name is known."""
    if (yield from steps.space()) != "{":
        return False
    written: list[str] = []

    def hold(run: str) -> None:
        written.append(run)
        steps.hold(run)

    if not (yield from _object(steps, hold)):
        return False
    for literal in (",", _NAME, ":"):
        if not (yield from steps.expect(literal)):
            return False
    name = yield from _name(steps)
    if name is None or not (yield from steps.expect("}")):
        return False
    steps.begin_call(name)
    steps.emit(Kind.ARGUMENTS, "".join(written))
    return (yield from _closing_tag(steps))


def _name(steps: Steps) -> Generator[Wanted, str, str | None]:
    """A tool's name: a JSON string that is not empty and holds no `<`."""
    if not (yield from steps.expect('"')):
        return None
    written, escaped = '"', False
    while len(written) <= MAX_NAME:
        character = yield None
        if character in "<\n":
            steps.unread(character)
            return None
        written += character
        steps.hold(character)
        if character == '"' and not escaped:
            return _decoded(written)
        escaped = character == "\\" and not escaped
    return None


def _decoded(written: str) -> str | None:
    try:
        name = str(json.loads(written))
        name.encode()
    except ValueError:  # no JSON, or half of a surrogate pair
        return None
    return name or None


def _object(steps: Steps, sink: Sink) -> Generator[Wanted, str, bool]:
    """Hand on a JSON object. False at a character that it cannot have, which will be read again."""
    scanned = JsonObject()
    while not scanned.ended:
        run = yield scanned.plain
        if not scanned.take(run):
            steps.unread(run)
            return False
        sink(run)
    return True


def _broken(steps: Steps) -> Generator[Wanted, str, bool]:
    """The arguments are no JSON: where they end, the closing tag alone can say."""
    steps.in_call = False  # it will not be whole
    steps.sink = say = steps.say(Kind.ARGUMENTS)
    while True:
        run = yield _PLAIN
        if run != "<":
            say(run)
            continue
        steps.hold(run)
        if (yield from steps.match(_CALL_END[1:])):
            steps.drop()
            return True
        steps.give_back()


def _closing(steps: Steps) -> Generator[Wanted, str, bool]:
    """Parse what follows complete arguments."""
    steps.in_call = False
    yield from steps.closing("}")
    return (yield from _closing_tag(steps))


def _closing_tag(steps: Steps) -> Generator[Wanted, str, bool]:
    """Parse what follows the object; if the tag is missing, what is there is parsed as text."""
    steps.in_call = False
    yield from steps.closing(_CALL_END)
    return True
