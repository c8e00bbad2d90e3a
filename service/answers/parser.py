"""Reads an answer that comes in pieces: text in; text, thoughts and calls of tools out.

Invariant: what comes out does not depend on where the pieces are cut. The grammar is written as
generators that take one character after another. They take a run of characters at once only where
that does the same. Nothing is lost: text and thoughts joined are what was fed, minus the markup.

- **Tags** are `<think>`, `</think>`, `<tool_call>`, `</tool_call>`. The line breaks around one
  belong to it, as templates write them.
- **Thoughts** are read at the answer's beginning alone; a tag further on is text, and a call inside
  thoughts belongs to the thoughts.
- **A call begins** once its name and the beginning of its arguments are read. Markup that breaks
  off or is malformed before is given back as text, and reading goes on behind it.
- **A call that has begun** keeps what it has. Where the answer is cut in its arguments, their JSON
  stays open. Where they are no JSON (hermes), all up to `</tool_call>` is theirs. Where something
  else stands between parameters (XML), or behind the arguments, that is text.
- A closing tag of which the answer's end has cut off some is markup still.
"""

import json
import re
from collections.abc import Generator

from quire.service.answers import hermes, xml_calls
from quire.service.answers.events import Event, Kind, Reading, Syntax
from quire.service.answers.steps import Steps, Wanted

MAX_NAME = min(hermes.MAX_NAME, xml_calls.MAX_NAME)
_THINK, _THINK_END, _CALL = "<think>", "</think>", "<tool_call>"


def is_name(name: str) -> bool:
    """Whether calls of a tool of this name can be read, in either syntax."""
    return len(json.dumps(name)) <= MAX_NAME and not re.search(r"[<>\x00-\x1f\x7f]", name)


class OutputParser:
    """One answer."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._steps = Steps()
        self.thinking = reading.thinking and reading.thinks
        self._ended = False
        self._grammar = self._answer()
        self._wanted: Wanted = next(self._grammar)

    @property
    def certain(self) -> bool:
        """Whether everything fed has been returned, or is markup."""
        return self._steps.certain

    @property
    def calls(self) -> int:
        """Calls that have begun."""
        return self._steps.calls

    @property
    def in_call(self) -> bool:
        """Whether a call's arguments have begun and not ended."""
        return self._steps.in_call

    def feed(self, text: str) -> list[Event]:
        """Take text; returns the events that are certain now."""
        steps, unread = self._steps, [(text, 0)]  # texts and places in them, the next one last
        while unread:
            text, at = unread.pop()
            while at < len(text):
                found = None if self._wanted is None else self._wanted.match(text, at)
                run = text[at] if found is None else found.group()
                at += len(run)
                self._wanted = self._grammar.send(run)
                if steps.back:  # characters that are to be read once more come first
                    unread.append((text, at))
                    text, at, steps.back = steps.back, 0, ""
        return steps.events()

    def finish(self) -> list[Event]:
        """The end of the answer: the events held back."""
        if not self._ended:
            self._ended = True
            self._steps.end()
            self._grammar.close()
        return self._steps.events()

    # ------------------------------------------------------------ the grammar

    def _answer(self) -> Generator[Wanted, str, None]:
        steps = self._steps
        if self._reading.thinks:
            steps.sink = steps.say(Kind.REASONING if self.thinking else Kind.TEXT)
            opened = yield from steps.opens_with(_THINK)
            self.thinking = opened or self.thinking
            if self.thinking:
                yield from steps.line_breaks()
                yield from steps.before(_THINK_END, steps.say(Kind.REASONING))
                steps.drop()
                self.thinking = False
                yield from steps.line_breaks()
        while self._reading.syntax is not None and self._may_call():
            yield from steps.before(_CALL, steps.say(Kind.TEXT))
            yield from self._call()
        yield from steps.everything(steps.say(Kind.TEXT))

    def _may_call(self) -> bool:
        most = self._reading.most_calls
        return most is None or self._steps.calls < most

    def _call(self) -> Generator[Wanted, str, None]:
        """Parse what follows `<tool_call>`, which is held with the line breaks before it."""
        steps = self._steps
        opening, before = steps.held, steps.calls
        if self._reading.syntax is Syntax.HERMES:
            closed = yield from hermes.call(steps)
        else:
            closed = yield from xml_calls.call(steps, self._reading.tools or {})
        if closed:
            yield from steps.line_breaks()
            return
        behind = steps.held
        if steps.calls == before:
            steps.emit(Kind.TEXT, opening)
            behind = behind[len(opening) :]
        steps.drop()
        steps.unread(behind)
