"""The way to an engine that runs somewhere else: on another thread, or in another process.

Invariant: a link carries plain data and decides nothing. What the engine says arrives on the event
loop that started the link, in order: any number of batches, then at most one death, then silence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from quire.engine.errors import EngineDeadError
from quire.engine.loop.commands import Command
from quire.engine.loop.loop import Batch, Progress
from quire.engine.loop.stats import EngineInfo


@dataclass(frozen=True, slots=True)
class Receiver:
    """Who is told, on the event loop."""

    deliver: Callable[[Sequence[Batch]], None]
    died: Callable[[EngineDeadError], None]
    progress: Progress


class Link(Protocol):
    """One engine's. All methods but busy_since and stack are to be called on one event loop."""

    @property
    def loop_share(self) -> float:
        """Of one core, what the event loop may use without taking it from the engine."""
        ...

    async def start(self, receiver: Receiver) -> EngineInfo:
        """Build the engine. Raises QuireError, EngineDeadError if it ended without a cause."""
        ...

    def send(self, command: Command) -> None:
        """In order; nothing if the engine has ended."""
        ...

    def busy_since(self) -> float | None:
        """Since when the engine has been at its present turn (time.monotonic); None: idle."""
        ...

    def stack(self) -> str:
        """Where the engine stands now; empty where it writes that to standard error itself."""
        ...

    def give_up(self) -> None:
        """The engine does not answer: deliver what has come of it, end it as far as possible, and
        wait for nothing."""
        ...

    async def stop(self) -> None:
        """Ask the engine to end, and return when it has; at once if it was given up on a thread,
        which cannot be ended."""
        ...
