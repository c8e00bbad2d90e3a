"""Starts the engine's process with a private socket and a word of shared memory, and ends it.

Invariant: the child inherits only the two descriptors, the environment and standard error. It is
waited for, so it leaves no zombie. It must end itself when the socket's other end is closed, for
whatever reason (see engine_child).
"""

import contextlib
import mmap
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from quire.engine import lifeline
from quire.engine.client import stacks
from quire.engine.loop import heartbeat
from quire.engine.loop.heartbeat import Heartbeat

_STANDARD_ERROR = 2


class Child:
    """Starts when made. `socket` and `busy` are this side's ends. For POSIX systems.

    To be made by a thread that lives as long as the child: Linux can tell a child of the end of
    the thread that has started it, not of the process (prctl(2), PR_SET_PDEATHSIG).
    """

    def __init__(self, program: Sequence[str]) -> None:
        """program: a command line, to which the numbers of the two descriptors are added."""
        self.socket, theirs = socket.socketpair()
        with theirs, _shared_memory(heartbeat.SIZE) as memory:
            self.busy = Heartbeat(memoryview(mmap.mmap(memory, heartbeat.SIZE)))
            descriptors = (theirs.fileno(), memory)
            with lifeline.signals_blocked():
                self._process = subprocess.Popen(
                    [*program, *map(str, descriptors)],
                    stdin=subprocess.DEVNULL,
                    stdout=_STANDARD_ERROR,  # standard output is the parent's alone
                    pass_fds=descriptors,
                )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask_for_stacks(self) -> None:
        """All its threads', on standard error. For one that hangs: see stacks."""
        self._process.send_signal(stacks.LAST_WORDS)

    def kill(self) -> None:
        """At once, whatever it does. Nothing if it has ended."""
        self._process.kill()

    def wait(self) -> int:
        """Blocks until it has ended; its exit code, or minus the signal's number."""
        return self._process.wait()

    def end(self) -> None:
        """Kill it if it still runs, wait for it, and release its resources."""
        self.kill()
        self.wait()
        self.socket.close()


@contextlib.contextmanager
def _shared_memory(size: int) -> Iterator[int]:
    """The descriptor of a file of zeros without a name; in memory where the system has that."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("quire-busy")
    else:
        descriptor, name = tempfile.mkstemp()
        Path(name).unlink()
    try:
        os.ftruncate(descriptor, size)
        yield descriptor
    finally:
        os.close(descriptor)
