"""What signals do to `quire serve`.

SIGTERM, SIGINT   the first asks for the drain, the second ends the process at once
SIGHUP            files that may change are read again; a terminal that is closed ends nothing
SIGUSR1           the stacks of all threads on standard error; nothing changes
SIGUSR2           the same at once, for a process that hangs: it may crash one that does not
SIGPIPE           nothing: a reader that has gone is an error of the write (Python's default)
SIGQUIT           the stacks, and the end with a core dump, as elsewhere

Invariant: the first signal starts a clock that no thread, no client and no lock can stop: should
the orderly end take longer than it may, the process ends with exit code 1 and all its stacks. The
handlers run on the main thread between any two of its instructions, so they need no event loop that
turns.
"""

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
from collections.abc import Callable
from types import FrameType

from quire.engine.client.stacks import answer_signals
from quire.service.app.watchdog import Deadman
from quire.service.telemetry import logs

log = logging.getLogger("quire.service")

STANDARD_ERROR = 2
_ENDS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """The process's handlers; to be made on its main thread."""

    def __init__(self, end_seconds: float) -> None:
        """end_seconds: after the first signal the process must be gone within these."""
        self.deadman = Deadman()
        self.on_hangup: Callable[[], None] = lambda: None
        self._end_seconds = end_seconds
        self._first: signal.Signals | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: asyncio.Event | None = None
        for number in _ENDS:
            signal.signal(number, self._on_end)
        signal.signal(signal.SIGHUP, self._on_hangup)
        faulthandler.register(signal.SIGQUIT, file=STANDARD_ERROR, all_threads=True, chain=True)
        answer_signals()

    def stop_asked(self) -> asyncio.Event:
        """Set by the first signal, even if it has already arrived. Call it on the loop."""
        self._loop, self._asked = asyncio.get_running_loop(), asyncio.Event()
        if self._first is not None:
            self._asked.set()
        return self._asked

    def exit_code(self) -> int:
        """That of a process which the first signal ended, by the shells' convention."""
        return 128 + (self._first or signal.SIGTERM)

    def _on_end(self, number: int, _frame: FrameType | None) -> None:
        if self._first is not None:
            log.warning("second %s: leaving at once", signal.Signals(number).name)
            logs.flush()
            os._exit(128 + number)
        self._first = signal.Signals(number)
        self.deadman.end_within(self._end_seconds)
        if self._asked is not None:
            self._tell(self._asked.set)

    def _on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        self._tell(self.on_hangup)

    def _tell(self, what: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                self._loop.call_soon_threadsafe(what)
