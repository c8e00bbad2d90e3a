"""The progress of loading, on standard error.

Invariant: on a terminal it is one line that is rewritten, and kept only when a stage is complete;
elsewhere at most five lines per stage, even if two stages alternate (kernels are compiled while
graphs are captured). Never on standard output, which belongs to `serving MODEL on HOST:PORT`.
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
        self._steps = 100 if self._rewrites else _LINES_A_STAGE
        self._shown: dict[str, int] = {}  # steps, by stages
        self._stage = ""  # the line's

    def __call__(self, stage: str, share: float) -> None:
        reached = int(max(0.0, min(share, 1.0)) * self._steps)
        if reached <= self._shown.get(stage, -1):
            return
        if stage != self._stage and self._shown.get(self._stage) == self._steps:
            self.close()
        self._stage = stage
        self._shown[stage] = reached
        self._write(f"{stage} {100 * reached // self._steps:3d}%")

    def _write(self, line: str) -> None:
        self._say(f"\r{line}\x1b[K" if self._rewrites else line + "\n")

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that is stuck or gone
            self._stream.write(text)
            self._stream.flush()

    def close(self) -> None:
        """Leave the line as it is and begin another."""
        if self._rewrites and self._stage:
            self._say("\n")
            self._stage = ""
