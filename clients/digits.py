"""Numbers that a user has typed: on the command line, in the environment, within an option.

Invariant: they are read in the same way everywhere: digits from 0 to 9, a point, an exponent, a
minus sign. Python's own int() and float() accept more: other scripts' digits, `1_000`, spaces,
`nan`.
"""

import math
import re
from typing import Any

_WHOLE = re.compile(r"-?[0-9]{1,4000}")  # Python reads no more than 4,300
_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
NAMES = {int: "a whole number", float: "a number"}


def read(kind: type, text: str) -> Any:
    """An int or a float, whichever is asked for. Raises ValueError, with no words of its own."""
    pattern = _WHOLE if kind is int else _NUMBER
    if not pattern.fullmatch(text):
        raise ValueError
    value = kind(text)
    if value in (math.inf, -math.inf):  # 1e999
        raise ValueError
    return value
