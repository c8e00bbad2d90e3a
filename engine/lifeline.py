"""Child processes that end with the process that started them.

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


class Readable(Protocol):
    """A socket or the read end of a pipe; only the parent holds the other end."""

    def fileno(self) -> int:
        """Its file descriptor."""


def environment(**more: str) -> dict[str, str]:
    """A child's environment: this process's without the secret, and `more`."""
    return {name: value for name, value in os.environ.items() if name != SECRET_VARIABLE} | more


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the parent's signals; children started meanwhile inherit the mask and unblock them
    when they are ready."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_captured(
    program: Sequence[str], *, stdin: int, stderr: int = subprocess.DEVNULL, **variables: str
) -> "subprocess.Popen[str]":
    """Start a program and capture its standard output as text. stdin: as in subprocess; variables:
    added to its environment. Call it in a thread that outlives it. Raises OSError."""
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


def end_with_parent(parent: Readable) -> None:
    """End this process when its parent does. Call it first of all, in the child's main thread."""
    for number in _PARENTS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PARENTS)
    be_killed_with_parent()  # should a step hold the interpreter for ever, _watch with it
    threading.Thread(target=_watch, args=(parent,), name="quire-parent", daemon=True).start()


def be_killed_with_parent() -> None:
    """Without a thread, so that this process can still be forked. On Linux; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def exit_orphaned() -> NoReturn:
    """End this process because its parent is gone."""
    os._exit(EXIT_ORPHANED)


def _watch(parent: Readable) -> NoReturn:
    """Sleep until the other end is closed, which the kernel does however the parent ended."""
    poll = select.poll()
    # Hang-ups are always told; of TCP, whose other end may be another machine's, by this alone.
    poll.register(parent, getattr(select, "POLLRDHUP", 0))
    poll.poll()
    exit_orphaned()
