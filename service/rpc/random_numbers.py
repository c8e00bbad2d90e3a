"""Random ids and seeds, read from the system many at a time: each by itself costs a call 10 µs.

Invariant: no digit is given twice. Nobody can guess them.
"""

import secrets

_BYTES = 16  # of an id
_AT_ONCE = 64


class RandomNumbers:
    """Those of one server; for any thread."""

    def __init__(self) -> None:
        self._ids: list[str] = []  # not given yet

    def id(self) -> str:
        """32 hexadecimal digits."""
        while True:
            try:
                return self._ids.pop()
            except IndexError:
                digits, size = secrets.token_hex(_BYTES * _AT_ONCE), 2 * _BYTES
                self._ids = [digits[at : at + size] for at in range(0, len(digits), size)]

    def seed(self) -> int:
        """64 bits."""
        return int(self.id()[:16], 16)
