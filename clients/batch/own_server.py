"""A server for one file: `quire serve` as a child, on a free loopback port.

Invariant: the child ends with this process, however that ends: asked to on every ordinary way out,
and by the kernel, on Linux, where this process is killed.
"""

import contextlib
import ctypes
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from quire.clients.errors import ClientError, OptionError

_SERVING = re.compile(r"serving .+ on (\S+)\s*")
_END_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1
EXIT_USAGE = 2


@contextlib.contextmanager
def own_server(words: Sequence[str]) -> Iterator[str]:
    """Starts `quire serve` and yields its address once it serves. words: its arguments, the model's
    first. Its messages go to standard error. Raises OptionError if it refuses the arguments (it has
    said why), ClientError if it ends before it serves."""
    command = [
        *(sys.executable, "-P", "-m", "quire.clients.cli", "serve"),
        *("--log-level", "warning", *words, "--host", "127.0.0.1", "--port", "0"),
        *("--http-port", "0"),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal's Ctrl-C is ours to answer
        preexec_fn=_end_with_parent(),
    )
    try:
        yield _address(process)
    finally:
        _end(process)


def _address(process: "subprocess.Popen[str]") -> str:
    """Waits for the line that names it."""
    found: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:  # to the end, or the child would wait for a reader
            match = _SERVING.fullmatch(line)
            if match is not None:
                found.put(match[1])
        found.put(None)

    threading.Thread(target=read, name="quire-own-server", daemon=True).start()
    while True:
        with contextlib.suppress(queue.Empty):  # in slices, so that Ctrl-C is heard
            address = found.get(timeout=0.2)
            break
    if address is not None:
        return address
    if process.wait() == EXIT_USAGE:
        raise OptionError("the server does not start: see above")
    raise ClientError(f"the server ended before it was serving (exit code {process.returncode})")


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_with_parent() -> Callable[[], None] | None:
    """Runs first of all in the child. It must not take a lock."""
    if sys.platform != "linux":
        return None
    control, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        control(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:
            os._exit(1)

    return ask
