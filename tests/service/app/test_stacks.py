"""Whoever asks a process where it stands hears it at a moment when nothing moves."""

import asyncio
import logging
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from support.patience import PATIENCE

from quire.service.app.server import Server
from quire.service.telemetry import logs
from quire.service.telemetry.logs import QueuedHandler

LOCKED = """
import ctypes, fcntl, os, signal, sys, termios
from quire.engine.client.stacks import answer_signals
read, write = os.pipe()
os.dup2(write, 2)
answer_signals()
libc = ctypes.PyDLL(None)  # whose functions keep the interpreter's lock
there = ctypes.c_int()
sys.setswitchinterval(3600)  # nobody else gets it meanwhile
libc.kill(os.getpid(), signal.SIGUSR1)
libc.ioctl(read, ctypes.c_ulong(termios.FIONREAD), ctypes.byref(there))
print(there.value, len(os.read(read, 1)))
"""


def test_stacks_are_read_while_nobody_runs() -> None:
    """Not by the signal's handler, which needs no lock and so reads beside threads that run."""
    words = [sys.executable, "-c", LOCKED]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout == "0 1\n"  # bytes written beside it, and at last


def test_the_line_that_announces_stacks_is_written_before_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine's process writes its own to the same standard error."""
    told: list[str] = []
    may_write = threading.Event()

    def write(_lines: bytes) -> None:
        may_write.wait(PATIENCE)
        told.append("line")

    def flush() -> None:
        may_write.set()
        handler.flush(PATIENCE)

    def stack() -> str:
        told.append("stacks")
        may_write.set()
        return ""

    handler = QueuedHandler(write)
    monkeypatch.setattr(logs, "flush", flush)
    monkeypatch.setattr(logging.getLogger("quire"), "handlers", [handler])
    server: Any = SimpleNamespace(_engine=SimpleNamespace(stack=stack))
    asyncio.run(Server._log_stack(server))
    handler.flush(PATIENCE)
    assert told == ["line", "stacks"]
