"""Keeps an event loop from sleeping while few streams are open.

A core that idles takes a twentieth of a millisecond and more to come back, and a lone call wakes
the event loop five times until its first token. So while a few streams are open, and for a moment
after the last, the loop goes round without sleeping. With more streams it seldom sleeps, and the
core has better things to do. The engine's process does the same: see process_main.

Invariant: a loop whose streams are silent sleeps, however long they are open: their readers may
have stalled, or the engine computes a very long prompt. No thread that reads a prompt waits for a
loop that goes round: it would get the interpreter only where that is taken from the loop by force.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from quire.engine.cores import usable

AWAKE = 0.02  # seconds without work: longer than the calls of one client are apart
SILENT = 1.0  # seconds in which the engine tells no open stream anything: no hurry then
FEW = 4  # streams: what their messages cost the loop leaves it half of a core
_CORES = 4  # that this process may use, of which two are to spare
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container


def seconds_awake(device: str) -> float:
    """For how long a process polls before it sleeps, beside an engine on this device."""
    return AWAKE if device != "cpu" and cores() >= _CORES else 0.0


def cores(quota: Path = _QUOTA) -> float:
    """How many cores this process may use. quota: a file of control groups, if there is one."""
    count: float = usable()
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # none, or "max"
        used, period = map(int, quota.read_text().split())
        count = min(count, used / period)
    return count


class Awake:
    """Of one event loop, whose call_soon it is given. Used on that loop only."""

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        others_work: Callable[[], bool] = lambda: False,
        on_rest: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """others_work: whether other threads of this process need the interpreter. on_rest: the
        loop has stopped going round, and has used the time since it began for that."""
        self.seconds = 0.0  # after the last stream's end; 0: it sleeps as it likes
        self._call_soon = call_soon
        self._others_work = others_work
        self._on_rest = on_rest
        self._clock = clock
        self._open = 0
        self._until = 0.0
        self.turning = False

    def begin(self) -> None:
        """A stream is open."""
        self._open += 1
        self.stay()

    def end(self) -> None:
        """It has ended."""
        self._open -= 1
        self.stay()

    def stay(self) -> None:
        """There is something for a stream, or will be soon."""
        if not self.seconds:
            return
        self._until = self._clock() + (SILENT if self._open else self.seconds)
        if not self.turning and self._wanted():
            self.turning = True
            self._call_soon(self._turn)

    def _turn(self) -> None:
        self.turning = self._wanted()
        if self.turning:
            self._call_soon(self._turn)
        else:
            self._on_rest()

    def _wanted(self) -> bool:
        return self._open <= FEW and self._clock() < self._until and not self._others_work()
