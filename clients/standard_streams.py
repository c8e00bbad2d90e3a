"""The standard streams of a command that was started without some of them.

Invariant: descriptors 0 to 2 are open, so that no file or socket gets one of their numbers, and
what is printed to a closed stream does not appear on another one.
"""

import os
import sys

INPUT, OUTPUT, ERROR = 0, 1, 2


def fill() -> None:
    """Open the closed ones as the null device."""
    for descriptor in (INPUT, OUTPUT, ERROR):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
    if sys.stdin is None:
        sys.stdin = os.fdopen(INPUT, closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(OUTPUT, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(ERROR, "w", buffering=1, closefd=False)
