"""The time at which the engine's loop began its current turn, readable even while the loop hangs.

Invariant: eight bytes, written by the loop alone and read from anywhere, also from another process
if the memory is shared. Reading needs neither a lock nor the loop's help, so a watchdog can detect
a loop that hangs. time.monotonic() is one clock for all processes of a machine.
"""

import time

SIZE = 8  # bytes
_IDLE = 0.0


class Heartbeat:
    """When the present turn began (time.monotonic), or nothing: the loop is idle."""

    def __init__(self, memory: memoryview | None = None) -> None:
        """memory: SIZE bytes, shared with the processes that read it; by default private to this
        one."""
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
