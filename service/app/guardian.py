"""The program of the deadman's process: it ends a server whose event loop has stopped for good.

    python -I -S guardian.py PID INTERVAL LOOKS < pipe

The server writes a byte into the pipe as long as its event loop runs. After LOOKS looks, INTERVAL
seconds apart, without a byte it gets SIGUSR2, which writes all its stacks, and a look later
SIGKILL. The pipe's end ends this process at once: whoever reads the server's standard error, which
this process has as well, is not kept waiting for a last look.

Invariant: looks are counted, never seconds. A machine, a container or a cgroup that was stopped
stops this process too; and while the server alone is stopped (SIGSTOP, a debugger), nothing is
counted. So nobody who was frozen and goes on is taken for one that hangs. Needs nothing but the
interpreter.
"""

import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

_STOPPED = "Tt"


class Kill(Protocol):
    """Sends the server a signal."""

    def __call__(self, number: int) -> None: ...


class Guardian:
    """Counts looks without a sign of life."""

    def __init__(self, looks: int, is_stopped: Callable[[], bool], kill: Kill) -> None:
        self._looks = looks
        self._is_stopped = is_stopped
        self._kill = kill
        self._silent = 0

    def look(self, *, alive: bool) -> bool:
        """alive: whether there was a sign since the last look. Returns whether it is over."""
        if alive:
            self._silent = 0
        elif not self._is_stopped():
            self._silent += 1
        if self._silent == self._looks and not alive:
            self._kill(signal.SIGUSR2)
        if self._silent > self._looks:
            self._kill(signal.SIGKILL)
            return True
        return False


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal or a debugger; told on Linux alone."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return status.rpartition(b") ")[2][:1].decode() in _STOPPED


def main(pid: int, interval: float, looks: int) -> None:
    """Run until the server is gone."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.set_blocking(0, False)
    guardian = Guardian(looks, lambda: is_stopped(pid), lambda number: os.kill(pid, number))
    end = select.poll()
    end.register(0, 0)  # no events: woken by the pipe's end alone
    over = False
    while not over:
        end.poll(interval * 1000)
        try:
            signs = os.read(0, 4096)
            if not signs:
                return
            over = guardian.look(alive=True)
        except BlockingIOError:
            over = guardian.look(alive=False)
        except OSError:
            return


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
