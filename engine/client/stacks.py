"""The stacks of all threads on standard error, for whoever sends a signal to ask for them.

SIGUSR1   for a process that is well; it changes nothing. A thread of its own waits for the signal,
          so it is answered even while the main thread hangs. That thread holds the interpreter's
          lock while it reads the stacks, so none of them moves meanwhile.
SIGUSR2   for a process that is about to be ended (the watchdogs send it), in which somebody may
          hold the lock for ever. faulthandler answers at once, beside threads that run: a stack
          that moves can crash the process.
"""

import contextlib
import faulthandler
import os
import select
import signal
import tempfile
import threading
from types import FrameType
from typing import NoReturn

LAST_WORDS = signal.SIGUSR2
_ASKED = signal.SIGUSR1
_STANDARD_ERROR = 2
_READER_MS = 5_000  # to wait for a reader who takes nothing


def answer_signals() -> None:
    """Start answering these signals. Call it on the main thread before other threads are started:
    they inherit the blocked signal."""
    faulthandler.register(LAST_WORDS, file=_STANDARD_ERROR, all_threads=True)
    signal.signal(_ASKED, _on_asked)  # should a thread that is older than this get the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {_ASKED})
    threading.Thread(target=_answer, name="quire-stacks", daemon=True).start()


def _answer() -> NoReturn:
    while True:
        signal.sigwait({_ASKED})
        write_stacks()


def _on_asked(_number: int, _frame: FrameType | None) -> None:
    threading.Thread(target=write_stacks, name="quire-stacks-once", daemon=True).start()


def write_stacks() -> None:
    """Read with the interpreter's lock held, written without it: a reader of standard error who
    reads nothing holds up the calling thread alone, and loses the rest."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read()
    writable = select.poll()
    writable.register(_STANDARD_ERROR, select.POLLOUT)
    with contextlib.suppress(OSError):
        while text and writable.poll(_READER_MS):
            text = text[os.write(_STANDARD_ERROR, text) :]
