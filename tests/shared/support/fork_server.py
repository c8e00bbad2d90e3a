"""A process of Python that has imported the slow libraries, and forks a program for each order.

    python fork_server.py SOCKET KIND

Importing torch takes longer than most programs that the tests start. KIND says what is imported:
for `clients`, which have no torch, or for `servers`, with Quire's own modules. SOCKET is an
inherited descriptor; an order comes on it as one JSON message (`Order`) with four descriptors: the
program's standard streams, and a pipe that is told its id and, at its end, its exit code. The
socket's end ends this process, not its programs.

Honest, because a program is a process with arguments, an environment, a directory, descriptors and
signals of its own, runs as `__main__`, and ends as an interpreter ends; and because what is there
of Quire reads nothing of its process meanwhile: `quire.clients.cli`, which does, is imported behind
the fork. Not as in a fresh interpreter: which modules are loaded, the hash seed, /proc/PID/cmdline
and environ, the parent, and that modules with torch, which takes longer than most programs, are not
taken apart at the end. A test of those starts a fresh one.
"""

import array
import atexit
import contextlib
import dataclasses
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import NoReturn, TextIO

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
        *("quire.engine.loop.build", "quire.service.constraints.grammars"),
    ),
}
LARGEST = 1 << 17
"""Bytes of an order at most."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What to run: a script's path, or with `module` a module's name, and its arguments."""

    program: str
    arguments: list[str]
    module: bool
    directory: str
    environment: dict[str, str]
    ignored: list[int]
    """Signals, as whoever starts a program hands them on."""


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
                words, descriptors, _, _ = socket.recv_fds(self._orders, LARGEST, 4)
                if not words:
                    return None
                order = Order(**json.loads(words))
                if self._fork(descriptors.pop()):
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


def _become(order: Order, streams: list[int]) -> None:
    """Runs the program to its end; raises SystemExit and what else it may raise."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = sys.__stdin__ = _stream(sys.stdin, 0)
    sys.stdout = sys.__stdout__ = _stream(sys.stdout, 1)
    sys.stderr = sys.__stderr__ = _stream(sys.stderr, 2)
    os.environ.clear()
    os.environ.update(order.environment)
    os.chdir(order.directory)
    _hand_on(order.ignored)
    sys.argv[:] = [order.program, *order.arguments]
    if order.module:
        sys.path[0] = order.directory
        runpy.run_module(order.program, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(order.program).parent)
        runpy.run_path(order.program, run_name="__main__")


def _hand_on(ignored: list[int]) -> None:
    """Ignore these signals and no others, as a program does that was started by their owner."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        wanted = number in ignored
        if wanted != (signal.getsignal(number) is signal.SIG_IGN):
            signal.signal(number, signal.SIG_IGN if wanted else signal.SIG_DFL)
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


def main() -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # as the programs set it before they import it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for those who started this
    orders = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()  # what is imported stays
    for name in PRELOADED[sys.argv[2]]:
        importlib.import_module(name)
    threads = [path.name for path in Path("/proc/self/task").iterdir()]
    assert len(threads) == 1, f"a library starts threads when it is imported: {threads}"
    gc.freeze()
    gc.enable()
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
