"""CPU time of each thread of this process, from the kernel's accounts (Linux).

Invariant: what is given is the difference of two readings; threads that Python does not know are
gRPC's and the device driver's, and are added up as `native`.
"""

import os
import threading
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


class ThreadTimes:
    """Reads the accounts when made; `shares` gives what came since."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._before = _read()

    def shares(self) -> dict[str, float]:
        """Of each thread by name: CPU seconds a second of wall time. Python's own by name."""
        wall, names = time.monotonic() - self._began, _names()
        shares: dict[str, float] = {}
        for thread_id, seconds in _read().items():
            name = names.get(thread_id, "native")
            used = seconds - self._before.get(thread_id, 0.0)
            shares[name] = shares.get(name, 0.0) + used / wall
        return {name: round(share, 4) for name, share in shares.items() if share >= 0.0005}


def _names() -> dict[int, str]:
    known = {t.native_id: t.name for t in threading.enumerate() if t.native_id is not None}
    known[os.getpid()] = "event loop"  # the main thread's id is the process's
    return {i: "poller" if "poll" in name.lower() else name for i, name in known.items()}


def _read() -> dict[int, float]:
    times = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        times[int(task.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
    return times
