"""A process of Python that has imported the slow libraries, and forks a program for each order.

    python fork_server.py SOCKET KIND

Importing torch takes longer than most programs that the tests start. KIND says what is imported:
for `clients`, which have no torch, or for `servers`, with Quire's own modules. SOCKET is an
inherited descriptor; an order comes on it as one JSON message (`Order`) with descriptors: the
program's standard streams, a pipe that is told its id and, at its end, its exit code, and what else
the program is to inherit. The socket's end ends this process, not its programs.

Honest, because a program is a process with arguments, an environment, a directory, descriptors and
signals of its own, runs as `__main__`, and ends as an interpreter ends; and because what is there
of Quire reads nothing of its process meanwhile: `quire.clients.cli`, which does, is imported behind
the fork. Not as in a fresh interpreter: which modules are loaded, the hash seed, /proc/PID/cmdline
and environ, the parent, and that modules with torch, which takes longer than most programs, are not
taken apart at the end. A test of those starts a fresh one.

What such a server starts of Quire's own processes is forked as well, by itself: it has the torch
that each of them would import, and stays their parent. They have nothing of it but what they are
given, as after an exec. FRESH in the server's environment starts them afresh.
"""

import array
import atexit
import contextlib
import dataclasses
import fcntl
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO

_CLIENTS = (
    "asyncio",
    "google.protobuf.message",
    "google.protobuf.runtime_version",
    "google.rpc.error_details_pb2",
    "grpc",
    "grpc.experimental.aio",
    "grpc_status.rpc_status",
    "http.server",
    "importlib.metadata",
    *("pydantic.fields", "pydantic.type_adapter", "pydantic.types"),  # typer's
    "rich.console",
    "typer",
    "webbrowser",
    "zoneinfo",
)
PRELOADED = {
    "clients": _CLIENTS,
    "servers": (
        *_CLIENTS,
        *("cryptography.hazmat.primitives.serialization", "cryptography.x509", "faulthandler"),
        *("google.protobuf.descriptor_pb2", "grpc_health.v1.health_pb2_grpc"),
        *("grpc_reflection.v1alpha.reflection", "h11", "jinja2.sandbox"),
        *("llguidance", "numpy.typing", "prometheus_client.core", "safetensors.torch"),
        *("starlette.middleware.cors", "starlette.middleware.exceptions", "starlette.routing"),
        *("tokenizers", "tomllib", "torch", "uvicorn", "uvicorn.protocols.http.h11_impl"),
        *("uvloop", "xxhash"),
        *("quire.service.app.process", "quire.service.cli.commands"),
        *("quire.engine.startup.build_engine", "quire.service.constraints.grammars"),
        "known_templates",  # beside this file
    ),
}
LARGEST = 1 << 17
"""Bytes of an order at most."""
_DESCRIPTORS = 8
"""That come with it at most."""
FRESH = "TESTS_FRESH_CHILDREN"


@dataclasses.dataclass(frozen=True)
class Order:
    """What to run: a script's path, or with `module` a module's name, and its arguments."""

    program: str
    arguments: list[str]
    module: bool
    first: str | None
    """Of the places where modules are looked for; None for an interpreter's -P."""
    directory: str
    environment: dict[str, str]
    ignored: list[int]
    """Signals, as whoever starts a program hands them on."""
    kept: Sequence[int] = ()
    """The numbers of the other descriptors."""


class _Server:
    """The loop: orders in, ends out. One thread, as a process that forks has to be."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._selector = selectors.DefaultSelector()
        self._selector.register(orders, selectors.EVENT_READ)
        self._told: dict[int, tuple[int, int]] = {}  # by descriptor of a program: its id, its pipe

    def serve(self) -> tuple[Order, list[int]] | None:
        """Returns in each program, with its order and standard streams; None at the very end."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._orders:
                    self._tell_end(key.fd)
                    continue
                words, descriptors, _, _ = socket.recv_fds(self._orders, LARGEST, _DESCRIPTORS)
                if not words:
                    return None
                order = Order(**json.loads(words))
                if self._fork(descriptors.pop(3)):
                    return order, descriptors
                for descriptor in descriptors:
                    os.close(descriptor)

    def _fork(self, pipe: int) -> bool:
        """Whether this is the program."""
        pid = os.fork()
        if pid == 0:
            self._selector.close()
            self._orders.close()
            for descriptor, (_, other) in self._told.items():
                os.close(descriptor)
                os.close(other)
            os.close(pipe)
            return True
        ended = os.pidfd_open(pid)
        self._told[ended] = pid, pipe
        self._selector.register(ended, selectors.EVENT_READ)
        _tell(pipe, pid)
        return False

    def _tell_end(self, ended: int) -> None:
        self._selector.unregister(ended)
        os.close(ended)
        pid, pipe = self._told.pop(ended)
        _, status = os.waitpid(pid, 0)
        _tell(pipe, os.waitstatus_to_exitcode(status))
        os.close(pipe)


def _tell(pipe: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it
        os.write(pipe, array.array("q", [number]).tobytes())


def _become(order: Order, descriptors: list[int]) -> None:
    """Runs the program to its end; raises SystemExit and what else it may raise."""
    wanted = [0, 1, 2, *order.kept]
    apart = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, max(wanted) + 1) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for number, descriptor in zip(wanted, apart, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    _take_on(order)
    os.chdir(order.directory)
    sys.path[:1] = [] if order.first is None else [order.first]
    _run(order)


def _take_on(order: Order) -> None:
    """What a process has of its own; its standard streams are there."""
    sys.stdin = sys.__stdin__ = _stream(sys.__stdin__, 0)
    sys.stdout = sys.__stdout__ = _stream(sys.__stdout__, 1)
    sys.stderr = sys.__stderr__ = _stream(sys.__stderr__, 2)
    os.environ.clear()
    os.environ.update(order.environment)
    _hand_on(order.ignored)
    sys.argv[:] = [order.program, *order.arguments]


def _run(order: Order) -> None:
    if order.module:
        runpy.run_module(order.program, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(order.program, run_name="__main__")


def _hand_on(ignored: list[int]) -> None:
    """Ignore these signals and no others, as a program does that was started by their owner."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    if signal.SIGINT not in ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stream(ours: TextIO, descriptor: int) -> TextIO:
    """As an interpreter opens it, for a program."""
    how = {"encoding": ours.encoding, "errors": ours.errors}
    if ours.write_through:  # PYTHONUNBUFFERED
        mode, size = ("rb", -1) if descriptor == 0 else ("wb", 0)
        raw = open(descriptor, mode, size, closefd=False)  # noqa: SIM115
        stream = io.TextIOWrapper(raw, **how, write_through=True)
        stream.mode = ours.mode
        return stream
    lines = 1 if os.isatty(descriptor) or descriptor == 2 else -1
    return open(descriptor, ours.mode, lines, **how, closefd=False)


class _Started(subprocess.Popen[Any]):
    """As the class it stands for, but that a process of Quire's own is forked from this one."""

    def __init__(self, words: list[str], **how: Any) -> None:
        if FRESH not in os.environ and "pass_fds" in how:
            module = words[1:3] == ["-P", "-m"]
            environment = dict(how.get("env") or os.environ)
            ignored = [n for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN]
            program, *arguments = words[3:] if module else words[1:]
            order = Order(program, arguments, module, None, "", environment, ignored)
            how["preexec_fn"] = partial(_replace, order, how["pass_fds"])
            how["restore_signals"] = False
        super().__init__(words, **how)


def _replace(order: Order, kept: tuple[int, ...]) -> NoReturn:
    """Run the program where an exec would stand: with its descriptors, and no others of ours."""
    try:
        gc.freeze()  # an object of ours that went would close what is no longer its own
        for path in list(Path("/proc/self/fd").iterdir()):
            if int(path.name) not in (0, 1, 2, *kept):
                with contextlib.suppress(OSError):  # the listing's own
                    os.close(int(path.name))
        atexit._clear()
        Path("/proc/self/comm").write_text(order.program.rpartition(".")[2])
        _take_on(order)
        _run(order)
        _end(0)
    except SystemExit as end:
        _end(int(end.code or 0))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def main() -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # as the programs set it before they import it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for those who started this
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # whatever they blocked just then
    orders = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()  # what is imported stays
    for name in PRELOADED[sys.argv[2]]:
        importlib.import_module(name)
    threads = [path.name for path in Path("/proc/self/task").iterdir()]
    assert len(threads) == 1, f"a library starts threads when it is imported: {threads}"
    gc.freeze()
    gc.enable()
    subprocess.Popen = _Started  # type: ignore[misc]
    served = _Server(orders).serve()
    if served is None:
        return
    try:
        _become(*served)
        code = 0
    except SystemExit as end:
        if "torch" not in sys.modules or not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    _end(code)


def _end(code: int) -> NoReturn:
    """As an interpreter does: threads, what was registered for the end, what is still unsaid."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except (OSError, ValueError):
        sys.exit(code)  # the interpreter has words for it, and a code
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main()
