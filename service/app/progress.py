"""How far loading has come, on standard error.

Invariant: on a terminal one line that is rewritten; elsewhere at most five lines a stage. Never on
standard output, which belongs to `serving MODEL on HOST:PORT`.
"""

import contextlib
import sys
from typing import TextIO

_LINES_A_STAGE = 4


class Progress:
    """Called with a stage's name and the share of it that is done, 0 to 1."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._rewrites = self._stream.isatty()
        self._stage = ""
        self._shown = -1

    def __call__(self, stage: str, share: float) -> None:
        if stage != self._stage:
            self.close()
            self._stage, self._shown = stage, -1
        steps = 100 if self._rewrites else _LINES_A_STAGE
        reached = int(max(0.0, min(share, 1.0)) * steps)
        if reached > self._shown:
            self._shown = reached
            self._write(f"{stage} {100 * reached // steps:3d}%")

    def _write(self, line: str) -> None:
        self._say(f"\r{line}\x1b[K" if self._rewrites else line + "\n")

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that is stuck or gone
            self._stream.write(text)
            self._stream.flush()

    def close(self) -> None:
        """Leave the line as it is and begin another."""
        if self._rewrites and self._shown >= 0:
            self._say("\n")
            self._shown = -1
