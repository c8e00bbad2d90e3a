"""Follows a JSON object through its text, to find where it ends.

Invariant: no character is taken that makes the nesting doubtful, such as text after a string that a
stray quote has ended. Otherwise the text is not judged: numbers, words and control characters pass
unchanged, because the arguments of a call are sent on exactly.
"""

import re

_VALUE, _SCALAR = "v", "s"  # a value has ended; a number or a word goes on
_MAY_FOLLOW = {
    "": "{",
    "{": '"}',
    "[": '"{[]' + _SCALAR,
    ",": '"{[' + _SCALAR,
    ":": '"{[' + _SCALAR,
    _VALUE: ",:}]",
    _SCALAR: ",:}]" + _SCALAR,
}
_PARTNER = {"}": "{", "]": "["}
_IN_STRING = re.compile(r'[^"\\]+')
SPACE = " \t\n\r"


class JsonObject:
    """One object, from its opening brace on."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._before = ""  # the last character outside strings, or _VALUE, or _SCALAR
        self._in_string = False
        self._escaped = False
        self.ended = False

    @property
    def plain(self) -> re.Pattern[str] | None:
        """What may be taken as a run now; None: single characters alone."""
        return _IN_STRING if self._in_string and not self._escaped else None

    def take(self, run: str) -> bool:
        """Whether a character, or a run, may follow; if not, nothing has changed."""
        if not self._in_string:
            return self._outside(run)
        if self._escaped:
            self._escaped = False
        elif run == "\\":
            self._escaped = True
        elif run == '"':
            self._in_string, self._before = False, _VALUE
        return True

    def _outside(self, character: str) -> bool:
        if character in SPACE:
            if self._before == _SCALAR:
                self._before = _VALUE
            return True
        sort = character if character in '{}[],:"' else _SCALAR
        if sort not in _MAY_FOLLOW[self._before]:
            return False
        if sort in "}]":
            return self._close(sort)
        if sort in "{[":
            self._open.append(sort)
        self._in_string = sort == '"'
        self._before = sort
        return True

    def _close(self, bracket: str) -> bool:
        if self._open[-1] != _PARTNER[bracket]:
            return False
        self._open.pop()
        self._before = _VALUE
        self.ended = not self._open
        return True
