"""What nodes have in common is handed to no process that does not come to node 0 with it."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from quire.engine.parallel import process
from quire.engine.runner import compile_process
from quire.service.app import watchdog

SECRET = "a secret of these tests alone"
_WAITS = (sys.executable, "-c", "input()")


def _rank() -> "subprocess.Popen[Any]":
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return process.start((sys.executable, "-c", "import time; time.sleep(60)"), theirs)


@contextmanager
def _ended(one: "subprocess.Popen[Any]") -> Iterator[dict[str, str]]:
    try:
        while not (environment := psutil.Process(one.pid).environ()):
            pass  # it is between two programs
        yield environment
    finally:
        one.kill()
        one.wait()


_STARTED: dict[str, Callable[[], "subprocess.Popen[Any]"]] = {
    "a compiler of kernels": lambda: compile_process.start(_WAITS),
    "the deadman": lambda: watchdog._start_guardian(1.0, 1 << 20)[0],
    "a rank of this node": _rank,
}


@pytest.mark.parametrize("who", _STARTED)
def test_no_process_of_ours_inherits_it(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_JOIN_SECRET", SECRET)
    monkeypatch.setenv("QUIRE_TEST", "something else")
    with _ended(_STARTED[who]()) as environment:
        assert SECRET not in environment.values()
        assert environment["QUIRE_TEST"] == "something else"
