"""What a process of ours needs so that it ends with the one that has started it.

Invariant: a child leaves at once when the other end of its socket or pipe is closed, which the
kernel does however its parent ended, even in the middle of a step. SIGINT and SIGTERM, which a
terminal or a supervisor sends to both, are the parent's to answer. A secret that only the parent
needs stays with it.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NoReturn, Protocol

EXIT_ORPHANED = 3
SECRET_VARIABLE = "QUIRE_JOIN_SECRET"  # what nodes have in common (see parallel.secret)
_PR_SET_PDEATHSIG = 1
_PARENTS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Held(Protocol):
    """A socket, or the end of a pipe that is read, whose other end the parent alone holds."""

    def fileno(self) -> int:
        """Its descriptor."""


def environment(**more: str) -> dict[str, str]:
    """What a child inherits that comes to no other node: all but the secret; and what is added."""
    return {name: value for name, value in os.environ.items() if name != SECRET_VARIABLE} | more


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """What is started within inherits it: a signal to both does not find the child unprepared."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_telling(
    program: Sequence[str], *, stdin: int, stderr: int = subprocess.DEVNULL, **variables: str
) -> "subprocess.Popen[str]":
    """A process whose standard output is text for us alone. stdin: of subprocess; variables: of its
    environment. Call it in a thread that lives as long. Raises OSError."""
    with signals_blocked():
        return subprocess.Popen(
            program,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",  # what libraries print may be no text
            env=environment(**variables),
        )


def hold_to(parent: Held) -> None:
    """In the child's main thread, first of all: signals, and the watch over the parent's life."""
    for number in _PARENTS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PARENTS)
    if sys.platform == "linux":  # should a step hold the interpreter for ever, _watch with it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    threading.Thread(target=_watch, args=(parent,), name="quire-parent", daemon=True).start()


def leave_orphaned() -> NoReturn:
    """The parent is gone."""
    os._exit(EXIT_ORPHANED)


def _watch(parent: Held) -> NoReturn:
    """Sleeps until the other end is closed, which the kernel does however the parent ended."""
    poll = select.poll()
    # Hang-ups are always told; of TCP, whose other end may be another machine's, by this alone.
    poll.register(parent, getattr(select, "POLLRDHUP", 0))
    poll.poll()
    leave_orphaned()
