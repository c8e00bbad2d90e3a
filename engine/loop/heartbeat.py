"""Since when the engine's loop has been at its present turn: one number that outlives any hang.

Invariant: eight bytes, written by the loop alone and read from anywhere, another process included,
where the memory is shared; reading needs neither a lock nor the loop's help, so a watchdog can tell
a loop that hangs. time.monotonic() is one clock for all processes of a machine.
"""

import time

SIZE = 8  # bytes
_IDLE = 0.0


class Heartbeat:
    """When the present turn began (time.monotonic), or nothing: the loop is idle."""

    def __init__(self, memory: memoryview | None = None) -> None:
        """memory: SIZE bytes, shared with whom it concerns; default: this process's own."""
        cells = memoryview(bytearray(SIZE)) if memory is None else memory
        self._cell = cells.cast("B").cast("d")

    def begin(self) -> None:
        """A turn begins now."""
        self._cell[0] = time.monotonic()

    def end(self) -> None:
        """The loop waits for commands, or has ended."""
        self._cell[0] = _IDLE

    @property
    def since(self) -> float | None:
        """When the present turn began; None: the loop is idle."""
        since = self._cell[0]
        return None if since == _IDLE else since
