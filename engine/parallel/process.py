"""A process of a rank's: started at the end of a socket, and how it ended.

Invariant: it inherits that socket, standard error and the environment without the secret alone, and
ends with the thread that has started it (see lifeline).
"""

import signal
import socket
import subprocess
from collections import deque
from collections.abc import Sequence

from quire.engine import lifeline

_STANDARD_ERROR = 2


class Program:
    """A rank's command line. Its processes can be started ahead, before anybody knows what they
    are to build: their imports take as long as this process's own."""

    def __init__(self, command: Sequence[str], ahead: int = 0) -> None:
        """ahead: processes to start now; they end with this thread, wanted or not."""
        self._command = tuple(command)
        self._ahead = deque(self._started() for _ in range(ahead))

    def start(self) -> "tuple[subprocess.Popen[bytes], socket.socket]":
        """A rank's process, and our end of its socket."""
        return self._ahead.popleft() if self._ahead else self._started()

    def _started(self) -> "tuple[subprocess.Popen[bytes], socket.socket]":
        ours, theirs = socket.socketpair()
        with theirs:
            return start(self._command, theirs), ours


def start(program: Sequence[str], connection: socket.socket) -> "subprocess.Popen[bytes]":
    """program: a command line, to which the number of the socket's descriptor is added."""
    with lifeline.signals_blocked():
        return subprocess.Popen(
            [*program, str(connection.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=_STANDARD_ERROR,
            pass_fds=(connection.fileno(),),
            env=lifeline.environment(),
        )


def how_it_ended(code: int) -> str:
    """An exit code, or minus a signal's number, in words."""
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"ended by {how}"
