"""Python programs that tests start: by a fork of a process that has torch, where that can be.

`start` and `run` take what `subprocess.Popen` and `subprocess.run` take of it, and do the same. See
`fork_server` for what a forked program has of its own; one that has to be fresh (`-c`, an
environment that libraries read when they are imported) is started by `subprocess`, as is all where
there are no process descriptors.
"""

import array
import atexit
import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from support import fork_server
from support.fork_server import Order

QUIRE = Path(sys.executable).with_name("quire")
_READ_AT_IMPORT = ("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "TORCH_", "TRITON", "CUDA", "LD_", "LC_")
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
_SERVER_COMMANDS = (["serve"], ["hash-key"])
_NUMBER = array.array("q").itemsize

Stream = int | IO[Any] | None
"""As `subprocess` takes it."""


class _ForkServer:
    """The process of a kind, started at the first order and ended with this one."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._orders: socket.socket | None = None

    def send(self, order: Order, descriptors: Sequence[int]) -> None:
        with self._lock:
            if self._orders is None:
                self._orders = self._start()
            words = json.dumps(dataclasses.asdict(order)).encode()
            assert len(words) <= fork_server.LARGEST
            socket.send_fds(self._orders, [words], descriptors)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, fork_server.__file__, str(theirs.fileno()), self._kind],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=_ENVIRONMENT,
            )
        atexit.register(process.wait)
        atexit.register(ours.close)  # the last registered is the first called
        return ours


_SERVERS = {kind: _ForkServer(kind) for kind in fork_server.PRELOADED}


class Forked:
    """A forked program, with what the tests use of `subprocess.Popen`."""

    def __init__(
        self, order: Order, stdin: Stream, stdout: Stream, stderr: Stream, text: bool
    ) -> None:
        self.args = [order.program, *order.arguments]
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._told, pipe = os.pipe()
        given = [pipe]  # closed once they are sent
        try:
            reader, self.stdin = _writable(stdin, 0, text, given)
            self.stdout, output = _readable(stdout, 1, text, given)
            self.stderr, errors = _readable(stderr, output, text, given, own=2)
            descriptors = [reader, output, errors, pipe, *order.kept]
            _SERVERS[_kind(order)].send(order, descriptors)
        finally:
            for descriptor in given:
                os.close(descriptor)
        self.pid = self._number()

    def _number(self) -> int:
        told = os.read(self._told, _NUMBER)
        assert len(told) == _NUMBER, "the fork server has died"
        return int(array.array("q", told)[0])

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None and select.select([self._told], [], [], 0)[0]:
                self.returncode = self._number()
                os.close(self._told)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        ended = select.select([self._told], [], [], timeout)[0] if self.poll() is None else True
        if not ended:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, given: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Writes, reads both streams to their ends, and waits."""
        end = None if timeout is None else time.monotonic() + timeout
        read: dict[IO[Any], Any] = {}
        streams = [one for one in (self.stdout, self.stderr) if one is not None and not one.closed]
        threads = [
            threading.Thread(target=lambda s=stream: read.update({s: s.read()}), daemon=True)
            for stream in streams
        ]
        if self.stdin is not None and not self.stdin.closed:
            threads.append(threading.Thread(target=self._give, args=(given,), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(None if end is None else max(end - time.monotonic(), 0))
            if thread.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if end is None else max(end - time.monotonic(), 0))
        for stream in streams:
            stream.close()
        return read.get(self.stdout), read.get(self.stderr)

    def _give(self, given: Any) -> None:
        assert self.stdin is not None
        try:
            if given:
                self.stdin.write(given)
            self.stdin.close()
        except BrokenPipeError:
            pass


def _kind(order: Order) -> str:
    quire = order.program in (str(QUIRE), "quire.clients.cli")
    return "clients" if quire and order.arguments[:1] not in _SERVER_COMMANDS else "servers"


def _writable(stream: Stream, own: int, text: bool, given: list[int]) -> tuple[int, IO[Any] | None]:
    """The program's end of a stream that it reads, and ours."""
    if stream != subprocess.PIPE:
        return _descriptor(stream, own, given), None
    theirs, ours = os.pipe()
    given.append(theirs)
    return theirs, os.fdopen(ours, "w" if text else "wb")


def _readable(
    stream: Stream, merged: int, text: bool, given: list[int], own: int = 1
) -> tuple[IO[Any] | None, int]:
    """Ours of a stream that the program writes, and its end; merged: what STDOUT stands for."""
    if stream == subprocess.STDOUT:
        return None, merged
    if stream != subprocess.PIPE:
        return None, _descriptor(stream, own, given)
    ours, theirs = os.pipe()
    given.append(theirs)
    return os.fdopen(ours, "r" if text else "rb"), theirs


def _descriptor(stream: Stream, own: int, given: list[int]) -> int:
    if stream is None:
        return own
    if stream == subprocess.DEVNULL:
        given.append(os.open(os.devnull, os.O_RDWR))
        return given[-1]
    return stream if isinstance(stream, int) else stream.fileno()


def start(
    words: Sequence[str | Path],
    *,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    text: bool = False,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Forked | subprocess.Popen[Any]:
    """`subprocess.Popen`."""
    environment = dict(os.environ if env is None else env)
    order = _order([str(word) for word in words], environment, pass_fds)
    if order is None:
        return subprocess.Popen(
            words, stdin=stdin, stdout=stdout, stderr=stderr, text=text, env=environment,
            pass_fds=pass_fds,
        )  # fmt: skip
    return Forked(order, stdin, stdout, stderr, text)


def run(
    words: Sequence[str | Path],
    *,
    timeout: float,
    given: str = "",
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` with texts in and out."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    program = start(words, **pipes, text=True, env=env)
    try:
        out, errors = program.communicate(given, timeout=timeout)
    except BaseException:
        program.kill()
        program.wait()
        raise
    return subprocess.CompletedProcess(words, program.wait(), out, errors)


class _Forking:
    """Stands for `subprocess`."""

    DEVNULL = subprocess.DEVNULL
    Popen = staticmethod(start)


@contextlib.contextmanager
def forking(module: Any) -> Iterator[None]:
    """What this module of Quire's starts within is forked: for tests of what a process does, not of
    how it begins and whether it is reaped."""
    module.subprocess = _Forking
    try:
        yield
    finally:
        module.subprocess = subprocess


def _order(words: list[str], environment: dict[str, str], kept: Sequence[int]) -> Order | None:
    """None for what has to be a fresh interpreter."""
    if not hasattr(os, "pidfd_open"):
        return None
    if any(_read(environment, name) for name in environment.keys() | _ENVIRONMENT.keys()):
        return None
    directory, first = str(Path.cwd()), words[0]
    place: str | None = directory
    if words[:2] == [sys.executable, "-P"]:
        del words[1]
        place = None
    if first == sys.executable and words[1] == "-m":
        program, arguments, module = words[2], words[3:], True
    elif first == sys.executable and not words[1].startswith("-"):
        program, arguments, module = words[1], words[2:], False
        place = str(Path(program).parent)
    elif first == str(QUIRE):
        program, arguments, module = first, words[1:], False
        place = str(QUIRE.parent)
    else:
        return None
    ignored = [int(n) for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN]
    return Order(program, arguments, module, place, directory, environment, ignored, kept)


def _read(environment: dict[str, str], name: str) -> bool:
    """Whether it differs and a library has read it when it was imported."""
    differs = environment.get(name) != _ENVIRONMENT.get(name)
    return differs and name.startswith(_READ_AT_IMPORT)
