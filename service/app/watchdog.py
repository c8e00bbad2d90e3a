"""Notices a step that does not end, and a process that no longer runs.

Invariant: the watchdog counts its own ticks, never the clock's seconds, so a process that was
stopped and goes on (a suspended machine, a debugger) is not taken for one that hangs. A step that
ends after all takes the alarm back; past the second bound there is no way back.

An engine's thread that holds the interpreter's lock for ever stops the event loop too, the watchdog
with it. That is the deadman's part: a timer outside the interpreter, which ends the process unless
the event loop sets it anew. (An engine in a process of its own cannot stop the watchdog.)
"""

import asyncio
import enum
import faulthandler
from collections.abc import Awaitable, Callable

_MAX_INTERVAL = 1.0  # seconds between two looks
_LOOKS = 8  # within the first bound, at least
_STANDARD_ERROR = 2


class Verdict(enum.Enum):
    """What one look has found new."""

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

    def look(self) -> Verdict:
        """To be called every `interval` seconds."""
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
    """The process's timer outside the interpreter: it ends the process, with all stacks on standard
    error and exit code 1, unless it is set anew."""

    def __init__(self) -> None:
        self._last = False

    async def hold(self, seconds: float) -> None:
        """Until cancelled: set it anew as long as the event loop runs, for `seconds` each time."""
        try:
            while not self._last:
                faulthandler.dump_traceback_later(seconds, exit=True, file=_STANDARD_ERROR)
                await asyncio.sleep(min(_MAX_INTERVAL, seconds / _LOOKS))
        finally:
            if not self._last:
                faulthandler.cancel_dump_traceback_later()

    def end_within(self, seconds: float) -> None:
        """From now on nothing sets it anew."""
        self._last = True
        faulthandler.dump_traceback_later(seconds, exit=True, file=_STANDARD_ERROR)
