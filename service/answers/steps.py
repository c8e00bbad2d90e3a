"""The building blocks of the answer grammars: steps that read one character after another.

A step is a generator. It yields what it wants (a pattern for runs that it takes at once, or None
for a single character) and is sent that. Characters that may turn out to be markup are held; `sink`
is where they go if they are not.
"""

import re
from collections.abc import Callable, Generator, Sequence

from quire.service.answers.events import Event, Kind
from quire.service.answers.json_scanner import SPACE

Wanted = re.Pattern[str] | None
Sink = Callable[[str], None]

_PLAIN = re.compile(r"[^<\n]+")
_ALL = re.compile(r"(?s:.+)")


class Steps:
    """The state that steps share.

    back: characters to be read once more, before all others. kept: a value that comes out as a
    whole, once it is complete.
    """

    def __init__(self) -> None:
        self.back = ""
        self._held: list[str] = []  # in pieces: a text that grew by each would be copied each time
        self.sink: Sink = self.say(Kind.TEXT)
        self.kept: list[str] | None = None
        self.calls = 0
        self.in_call = False
        self._events: list[Event] = []

    @property
    def certain(self) -> bool:
        """Whether nothing is held or kept."""
        return not self._held and self.kept is None

    def events(self) -> list[Event]:
        """The events that have not been taken yet."""
        events, self._events = self._events, []
        return events

    def end(self) -> None:
        """No more characters come."""
        self.give_back()
        if self.kept is not None:
            self.emit(Kind.ARGUMENTS, "".join(self.kept))
            self.kept = None

    # ------------------------------------------------------------ what comes out

    def emit(self, kind: Kind, text: str) -> None:
        """A piece of this kind."""
        if text:
            of_call = kind in (Kind.CALL, Kind.ARGUMENTS)
            self._events.append(Event(kind, text, self.calls - 1 if of_call else -1))

    def say(self, kind: Kind) -> Sink:
        """A sink for pieces of this kind."""
        return lambda text: self.emit(kind, text)

    def begin_call(self, name: str) -> None:
        """All that is held was markup, and a call begins."""
        self.drop()
        self.calls += 1
        self.in_call = True
        self.emit(Kind.CALL, name)

    # ------------------------------------------------------------ what is held

    @property
    def held(self) -> str:
        """All of it."""
        return "".join(self._held)

    def hold(self, text: str) -> None:
        """It may be markup."""
        self._held.append(text)

    def drop(self) -> None:
        """It was markup."""
        self._held = []

    def give_back(self) -> None:
        """It was none."""
        held = self.held
        self.drop()
        if held:
            self.sink(held)

    def unread(self, text: str) -> None:
        """Read these characters once more."""
        self.back = text + self.back

    def unread_held(self) -> None:
        """The same for everything that is held."""
        self.unread(self.held)
        self.drop()

    # ------------------------------------------------------------ steps

    def match(self, literal: str) -> Generator[Wanted, str, bool]:
        """Hold these characters. False at the first other one, which will be read again."""
        for wanted in literal:
            character = yield None
            if character != wanted:
                self.unread(character)
                return False
            self.hold(character)
        return True

    def space(self) -> Generator[Wanted, str, str]:
        """Hold white space. Returns the character after it, which will be read again."""
        while True:
            character = yield None
            if character not in SPACE:
                self.unread(character)
                return character
            self.hold(character)

    def expect(self, literal: str) -> Generator[Wanted, str, bool]:
        """White space, and then these characters."""
        yield from self.space()
        return (yield from self.match(literal))

    def one_of(self, literals: Sequence[str]) -> Generator[Wanted, str, str | None]:
        """White space, then one of these, none of which is a prefix of another."""
        yield from self.space()
        read, left = "", list(literals)
        while True:
            character = yield None
            left = [literal for literal in left if literal.startswith(read + character)]
            if not left:
                self.unread(character)
                return None
            read += character
            self.hold(character)
            if read == left[0]:
                return read

    def line_breaks(self) -> Generator[Wanted, str, None]:
        """Pass over line breaks, which belong to the tag before them."""
        while True:
            character = yield None
            if character != "\n":
                self.unread(character)
                return

    def opens_with(self, tag: str) -> Generator[Wanted, str, bool]:
        """Whether this tag comes next, white space aside; if not, nothing has been read."""
        if (yield from self.expect(tag)):
            self.drop()
            return True
        self.unread_held()
        return False

    def before(
        self, tag: str, sink: Sink, most_breaks: int | None = None
    ) -> Generator[Wanted, str, None]:
        """Pass on everything up to a tag, which is held with the line breaks before it (at most
        this many)."""
        self.sink = sink
        while True:
            run = yield _PLAIN
            if run == "\n":
                if len(self._held) == most_breaks:
                    sink("\n")
                else:
                    self.hold(run)
            elif run == "<":
                self.hold(run)
                if (yield from self.match(tag[1:])):
                    return
                self.give_back()
            else:
                self.give_back()
                sink(run)

    def closing(self, tag: str) -> Generator[Wanted, str, None]:
        """Pass over a closing tag, or what the answer's end leaves of it. Where it is left out,
        nothing is read."""
        self.drop()
        self.sink = nowhere
        if (yield from self.expect(tag)):
            self.drop()
        else:
            self.unread_held()

    def everything(self, sink: Sink) -> Generator[Wanted, str, None]:
        """Hand on all that comes, for ever."""
        while True:
            sink((yield _ALL))


def nowhere(text: str) -> None:
    """The sink for text that is markup even if the answer's end has cut it off."""
    del text
