"""A program that tests start by a fork sees what one that is started afresh sees."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import programs
from support.fork_server import FRESH
from support.patience import PATIENCE

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="nothing is forked here")

TELLS = """
import atexit, json, os, signal, sys, threading
atexit.register(print, "the last word")
print(json.dumps({
    "arguments": sys.argv,
    "name": [__name__, __file__, sys.modules["__main__"].__dict__ is globals()],
    "first": sys.path[0],
    "directory": os.getcwd(),
    "environment": dict(sorted(os.environ.items())),
    "descriptors": [os.path.exists(f"/proc/self/fd/{n}") for n in range(3, 40)],
    "signals": [str(signal.getsignal(n)) for n in signal.valid_signals()],
    "mask": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "streams": [
        [s.encoding, s.errors, s.line_buffering, s.write_through, s.mode, s.fileno()]
        for s in (sys.stdin, sys.stdout, sys.stderr)
    ],
    "threads": threading.active_count(),
    "session": [os.getsid(0), os.getpgrp()],
    "given": sys.stdin.read(),
}, indent=1))
print("aside", file=sys.stderr)
sys.exit(7)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "tells.py"
    path.write_text(TELLS)
    return path


@pytest.mark.parametrize("handed_on", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_forked_program_is_as_a_fresh_one(script: Path, handed_on: signal.Handlers) -> None:
    before = {n: signal.signal(n, handed_on) for n in (signal.SIGHUP, signal.SIGUSR1)}
    try:
        compare(script)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def compare(script: Path) -> None:
    words = [sys.executable, str(script), "a", "b c"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OF_THIS_TEST": "1"}
    forked = programs.run(words, given="in", timeout=PATIENCE, env=env)
    fresh = subprocess.run(words, input="in", capture_output=True, text=True, env=env)
    assert forked.stdout.splitlines() == fresh.stdout.splitlines()
    assert (forked.returncode, forked.stderr) == (fresh.returncode, fresh.stderr) == (7, "aside\n")


STARTS = """
import os, signal, subprocess, sys
kept = os.open(os.devnull, os.O_RDONLY)
signal.signal(signal.SIGHUP, lambda *_: None)
words = [sys.executable, sys.argv[1], str(kept)]
sys.exit(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=2, pass_fds=[kept]).wait())
"""


def test_what_a_forked_server_starts_is_as_if_afresh(script: Path) -> None:
    starts = script.with_name("starts.py")
    starts.write_text(STARTS)
    words = [sys.executable, str(starts), str(script)]
    environment = {**os.environ, "OF_THIS_TEST": "1"}
    forked, fresh = (
        programs.run(words, timeout=PATIENCE, env=environment | more) for more in ({}, {FRESH: "1"})
    )
    said = [line for line in fresh.stderr.splitlines() if FRESH not in line]
    assert forked.stderr.splitlines() == said and len(said) > 50
    assert forked.returncode == fresh.returncode == 7


def test_a_signal_ends_it_and_its_code_says_so(script: Path) -> None:
    program = programs.start([sys.executable, str(script)], stdin=subprocess.PIPE, text=True)
    assert isinstance(program, programs.Forked) and program.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(0)
    program.send_signal(signal.SIGKILL)
    assert program.wait(PATIENCE) == -signal.SIGKILL


def test_what_a_library_reads_when_it_is_imported_gets_a_fresh_interpreter(script: Path) -> None:
    words = [sys.executable, str(script)]
    for name in ("OMP_NUM_THREADS", "PYTHONUNBUFFERED", "TRITON_INTERPRET"):
        program = programs.start(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, name: "3"},
        )  # fmt: skip
        assert isinstance(program, subprocess.Popen)
        assert program.wait(PATIENCE) == 7
