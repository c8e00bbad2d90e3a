"""A command on a terminal of its own: what it shows is awaited, what is typed is sent."""

import os
import pty
import select
import signal
import sys
import termios
import time
from typing import Any, Self

from support import programs
from support.patience import PATIENCE


class TerminalSession:
    """`quire WORDS` with input, output and errors on one pseudo-terminal of 80 × 24."""

    def __init__(self, *words: str) -> None:
        self._leader, self.follower = pty.openpty()
        termios.tcsetwinsize(self.follower, (24, 80))
        self.before = termios.tcgetattr(self.follower)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("QUIRE_")}
        for name in ("COLUMNS", "LINES"):
            kept.pop(name, None)
        self.process = programs.start(
            [sys.executable, "-m", "quire.clients.cli", *words],
            stdin=self.follower,
            stdout=self.follower,
            stderr=self.follower,
            env={**kept, "TERM": "xterm-256color"},
        )
        self.shown = ""
        self._seen = 0

    def wait_for(self, text: str) -> str:
        """Reads until the text has come after what was awaited before; what came up to it."""
        limit = time.monotonic() + PATIENCE
        while (at := self.shown.find(text, self._seen)) < 0:
            self._read(limit, text)
        found = self.shown[self._seen : at + len(text)]
        self._seen = at + len(text)
        return found

    def _read(self, limit: float, wanted: str) -> None:
        ended = False
        while not select.select([self._leader], [], [], 0.05)[0]:
            why = f"{wanted!r} has not come: {self.shown!r}"
            assert not ended and time.monotonic() < limit, why
            ended = self.process.poll() is not None  # and once more for its last words
        self.shown += os.read(self._leader, 65536).decode(errors="replace")

    def write(self, keys: str) -> None:
        """Sends keys as a keyboard does."""
        os.write(self._leader, keys.encode())

    def prompt(self, text: str = "> ") -> str:
        """Waits for the prompt; what came up to it."""
        return self.wait_for(text)

    def interrupt(self) -> None:
        """SIGINT, as Ctrl-C brings it."""
        self.process.send_signal(signal.SIGINT)

    def exit_code(self) -> int:
        """Waits for the end, reading on so that the command can write; its exit code."""
        limit = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < limit, self.shown
            if select.select([self._leader], [], [], 0.05)[0]:
                self.shown += os.read(self._leader, 65536).decode(errors="replace")
        while select.select([self._leader], [], [], 0)[0]:
            self.shown += os.read(self._leader, 65536).decode(errors="replace")
        return self.process.returncode

    def settings(self) -> list[Any]:
        """How the terminal is set now."""
        return termios.tcgetattr(self.follower)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        os.close(self._leader)
        os.close(self.follower)
