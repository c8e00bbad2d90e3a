"""The deadman's process: it counts looks, so that nobody who was frozen is taken for hung."""

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from support.fake_engine import Builder, Device
from support.harness import run, settings
from support.patience import PATIENCE

from quire.engine.client.in_thread import ThreadLink
from quire.service.app import guardian, process
from quire.service.app.guardian import Guardian, is_stopped
from quire.service.app.watchdog import Verdict, Watchdog


class Server:
    """One that may be stopped, and what it was sent."""

    def __init__(self) -> None:
        self.stopped = False
        self.sent: list[int] = []

    def guardian(self, looks: int) -> Guardian:
        return Guardian(looks, lambda: self.stopped, self.sent.append)


def test_silence_is_answered_with_the_stacks_and_then_the_end() -> None:
    server = Server()
    guardian = server.guardian(3)
    assert [guardian.look(alive=False) for _ in range(4)] == [False, False, False, True]
    assert server.sent == [signal.SIGUSR2, signal.SIGKILL]


def test_a_sign_of_life_begins_the_count_anew_even_after_the_stacks() -> None:
    server = Server()
    guardian = server.guardian(2)
    for _ in range(50):
        for alive in (False, False, True):
            assert not guardian.look(alive=alive)
    assert signal.SIGKILL not in server.sent


def test_a_server_that_is_stopped_is_not_counted_and_goes_on() -> None:
    server = Server()
    guardian = server.guardian(3)
    guardian.look(alive=False)
    guardian.look(alive=False)
    server.stopped = True
    for _ in range(1000):
        assert not guardian.look(alive=False)
    server.stopped = False
    assert not guardian.look(alive=True)
    assert server.sent == []


def test_a_stopped_process_is_told_from_one_that_sleeps() -> None:
    words = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert not is_stopped(process.pid)
        process.send_signal(signal.SIGSTOP)
        while not is_stopped(process.pid):
            pass
        process.send_signal(signal.SIGCONT)
        while is_stopped(process.pid):
            pass
        process.kill()
    assert not is_stopped(process.pid)


def test_the_servers_end_is_the_guardians_whenever_it_would_look_next() -> None:
    """A pipeline that reads the server's standard error waits for both."""
    words = [sys.executable, "-I", "-S", guardian.__file__, str(os.getpid()), "86400", "2"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        _, errors = process.communicate(b".", timeout=PATIENCE)
    assert (process.returncode, errors) == (0, b"")


class Deadman:
    """Notes that it has let go."""

    held: bool | None = None

    async def hold(self, _seconds: float) -> None:
        self.held = True
        try:
            await asyncio.Event().wait()
        finally:
            self.held = False


class Asked:
    """Signals of a process that is asked to stop as soon as it serves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.deadman = Deadman()
        self._stop = asyncio.Event()
        monkeypatch.setattr(process.standard_streams, "say", lambda _line: self._stop.set())

    def stop_asked(self) -> asyncio.Event:
        return self._stop


def test_whoever_leaves_is_held_to_no_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        signals: Any = Asked(monkeypatch)
        device = Builder(Device())
        code = await process._serve(settings(), lambda config: ThreadLink(config, device), signals)
        assert (code, signals.deadman.held) == (0, False)

    run(test)


def test_the_watchdog_knows_no_clock_that_could_jump() -> None:
    """A step that began hours ago by the clock, and two looks ago by the watchdog."""
    dog = Watchdog(lambda: -1e6, 8.0, 4.0)
    assert [dog.look() for _ in range(3)] == [Verdict.NOTHING] * 3
