"""Notices a step that does not end, and a process that no longer runs.

Invariant: the watchdog counts its own ticks, never the clock's seconds, so a process that was
stopped and goes on (a suspended machine, a debugger) is not taken for one that hangs. A step that
ends after all takes the alarm back; past the second bound there is no way back.

An engine's thread that holds the interpreter's lock for ever stops the event loop too, the watchdog
with it. That is the deadman's part: a small process of its own, which ends this one unless the
event loop gives signs of life. It counts looks too (see guardian). (An engine in a process of its
own cannot stop the watchdog.)
"""

import asyncio
import contextlib
import enum
import faulthandler
import math
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable

from quire.engine import lifeline
from quire.service.app import guardian
from quire.service.settings import ServiceConfig

_MAX_INTERVAL = 1.0  # seconds between two looks
_LOOKS = 8  # within the first bound, at least
_STANDARD_ERROR = 2


class Verdict(enum.Enum):
    """What a check has found that is new."""

    NOTHING = enum.auto()
    HUNG = enum.auto()
    RECOVERED = enum.auto()
    LOST = enum.auto()


class Watchdog:
    """Looks at one engine. `hung`: a step has taken more than the first bound and still runs."""

    def __init__(
        self, busy_since: Callable[[], float | None], seconds: float, exit_seconds: float
    ) -> None:
        """busy_since: when the present step began, None while idle. seconds: bound of a step.
        exit_seconds: how long an alarm may last before the engine is given up; 0: for ever."""
        self.hung = False
        self.interval = min(_MAX_INTERVAL, seconds / _LOOKS)
        self._busy_since = busy_since
        self._seconds = seconds
        self._exit_seconds = exit_seconds
        self._step: float | None = None
        self._stuck = 0.0

    @classmethod
    def of(
        cls, service: ServiceConfig, busy_since: Callable[[], float | None]
    ) -> "Watchdog | None":
        """The watchdog for these options; None: no step is too long."""
        if not service.watchdog_seconds:
            return None
        return cls(busy_since, service.watchdog_seconds, service.watchdog_exit_seconds)

    def look(self) -> Verdict:
        """Check. Call it every `interval` seconds."""
        step = self._busy_since()
        self._stuck = self._stuck + self.interval if step is not None and step == self._step else 0
        self._step = step
        if not self._stuck:
            recovered, self.hung = self.hung, False
            return Verdict.RECOVERED if recovered else Verdict.NOTHING
        if not self.hung:
            self.hung = self._stuck >= self._seconds
            return Verdict.HUNG if self.hung else Verdict.NOTHING
        over = self._exit_seconds and self._stuck >= self._seconds + self._exit_seconds
        return Verdict.LOST if over else Verdict.NOTHING

    async def watch(self, on_change: Callable[[Verdict], Awaitable[None]]) -> None:
        """Look until the engine is lost; tell each change."""
        verdict = Verdict.NOTHING
        while verdict is not Verdict.LOST:
            await asyncio.sleep(self.interval)
            verdict = self.look()
            if verdict is not Verdict.NOTHING:
                await on_change(verdict)


class Deadman:
    """Ends a process whose event loop no longer runs, whatever blocks it."""

    async def hold(self, seconds: float) -> None:
        """Give signs of life to the process that ends this one without them; until cancelled.

        That process waits `seconds` in which this one ran and gave no sign. It then has all stacks
        written to standard error, and ends it.
        """
        interval = min(_MAX_INTERVAL, seconds / _LOOKS)
        process, sign = _start_guardian(interval, math.ceil(seconds / interval))
        try:
            while True:
                with contextlib.suppress(BlockingIOError, BrokenPipeError):
                    os.write(sign, b".")
                await asyncio.sleep(interval / 2)
        finally:
            os.close(sign)  # it ends by that
            process.poll()

    def end_within(self, seconds: float) -> None:
        """End this process after this many seconds of wall time, with all stacks and exit code
        1."""
        faulthandler.dump_traceback_later(seconds, exit=True, file=_STANDARD_ERROR)


def _start_guardian(interval: float, looks: int) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and where to write signs of life."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    words = [sys.executable, "-I", "-S", guardian.__file__, str(os.getpid())]
    try:
        process = subprocess.Popen(
            [*words, str(interval), str(looks)],
            stdin=read,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env=lifeline.environment(),
        )
    except BaseException:
        os.close(write)
        raise
    finally:
        os.close(read)
    return process, write
