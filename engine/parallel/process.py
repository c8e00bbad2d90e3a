"""A process of a rank's: started at the end of a socket, and how it ended.

Invariant: it inherits that socket, standard error and the environment without the secret alone, and
ends with the thread that has started it (see lifeline).
"""

import signal
import socket
import subprocess
from collections.abc import Sequence

from quire.engine import lifeline

_STANDARD_ERROR = 2


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
