"""Single key presses of a terminal, without waiting for the end of a line.

Invariant: however the `with` ends, the terminal is restored, and keys that were not read are
discarded, so that they do not appear in the shell. Ctrl-C stays a signal.
"""

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

with suppress(ImportError):  # Windows has neither: there keys are not read
    import termios
    import tty

_CLOSED = "\x04"
"""What stands for a terminal that is gone: its end of file."""
_LOOK = 0.5
"""Seconds until a signal is seen that came just before a wait began: it does not end that wait."""


class Keys:
    """The keys that are pressed on a terminal. descriptor: None where there is none to read."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    @property
    def are_read(self) -> bool:
        """Whether any key will ever be seen."""
        return self._descriptor is not None

    def wait(self, seconds: float, wanted: str) -> bool:
        """Waits so long at most; True at once when one of the wanted keys, or Ctrl-D, comes."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._descriptor is None:
                time.sleep(min(left, _LOOK))
            elif select.select([self._descriptor], [], [], min(left, _LOOK))[0]:
                pressed = os.read(self._descriptor, 1024).decode(errors="replace") or _CLOSED
                if any(key in wanted + _CLOSED for key in pressed):
                    return True
        return False


@contextmanager
def keys() -> Iterator[Keys]:
    """The keys of standard input, where it is a terminal."""
    if sys.stdin is None or not sys.stdin.isatty() or "termios" not in globals():
        yield Keys(None)
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield Keys(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
