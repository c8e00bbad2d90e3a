"""CPU time of each thread of a process, from the kernel's accounts (Linux).

Invariant: what is given is the difference of two readings; threads that Python does not know are
gRPC's and the device driver's, and are added up as `native`. Of an engine's process the first
thread is the engine, the others are `engine native`.
"""

import os
import threading
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


class ThreadTimes:
    """Reads the accounts when made; `shares` gives what came since."""

    def __init__(self, engine_pid: int | None = None) -> None:
        """engine_pid: of the engine's process; default: the accounts of this one."""
        self._pid = engine_pid
        self._began = time.monotonic()
        self._before = _read(engine_pid)

    def shares(self) -> dict[str, float]:
        """Of each thread by name: CPU seconds a second of wall time. Python's own by name."""
        wall = time.monotonic() - self._began
        if self._pid is None:
            names, other = _names(), "native"
        else:
            names, other = {self._pid: "quire-engine"}, "engine native"
        shares: dict[str, float] = {}
        for thread_id, seconds in _read(self._pid).items():
            name = names.get(thread_id, other)
            used = seconds - self._before.get(thread_id, 0.0)
            shares[name] = shares.get(name, 0.0) + used / wall
        return {name: round(share, 4) for name, share in shares.items() if share >= 0.0005}


def _names() -> dict[int, str]:
    known = {t.native_id: t.name for t in threading.enumerate() if t.native_id is not None}
    if threading.main_thread().name == "MainThread":  # nobody has given it another name
        known[os.getpid()] = "event loop"
    return {i: "poller" if "poll" in name.lower() else name for i, name in known.items()}


def _read(pid: int | None) -> dict[int, float]:
    times = {}
    for task in Path(f"/proc/{pid or 'self'}/task").iterdir():
        try:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        times[int(task.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
    return times
