"""The process's standard streams, made safe for a server. That they are open the command sees to.

Invariant: nothing that is written to standard error waits for its reader, whoever in the process
writes it: what a pipe, a terminal or a socket does not take is lost. (A terminal or a pipe of
another user, which cannot be opened anew, is left as it is; a pipe is then told not to wait.)
"""

import contextlib
import os
import socket
import stat
import struct
import threading

OUTPUT, ERROR = 1, 2
_SEND_MICROSECONDS = 5_000  # that a socket gets to take a write


def never_wait(descriptor: int = ERROR) -> None:
    """From now on, a write that would block fails with EAGAIN instead."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        _bound_sends(descriptor)
    elif stat.S_ISFIFO(mode) or os.isatty(descriptor):
        _open_anew(descriptor, is_pipe=stat.S_ISFIFO(mode))


def say(line: str) -> None:
    """Write a line to standard output. A reader that does not read it blocks nothing."""
    threading.Thread(target=_say, args=(line,), name="quire-output", daemon=True).start()


def _say(line: str) -> None:
    data = (line + "\n").encode("utf-8", "replace")
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(OUTPUT, data) :]


def _open_anew(descriptor: int, *, is_pipe: bool) -> None:
    """The flag belongs to the open file, which others share: take one of our own."""
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", flags)
    except OSError:
        if is_pipe:
            os.set_blocking(descriptor, False)
        return
    os.dup2(own, descriptor)
    os.close(own)


def _bound_sends(descriptor: int) -> None:
    limit = struct.pack("ll", 0, _SEND_MICROSECONDS)
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
