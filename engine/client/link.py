"""The link to an engine that runs elsewhere: on another thread, or in another process.

Invariant: a link carries plain data and decides nothing. What the engine sends arrives on the event
loop that started the link, in order: any number of batches, then at most one death, then nothing.
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
    """Receives what the engine sends, on the event loop."""

    deliver: Callable[[Sequence[Batch]], None]
    died: Callable[[EngineDeadError], None]
    progress: Progress


class Link(Protocol):
    """A link to one engine. Call all methods but busy_since and stack on one event loop."""

    @property
    def loop_share(self) -> float:
        """The share of one core that the event loop may use without slowing the engine."""
        ...

    @property
    def own_process(self) -> bool:
        """Whether the engine has an interpreter of its own."""
        ...

    async def start(self, receiver: Receiver) -> EngineInfo:
        """Build the engine. Raises QuireError, EngineDeadError if it ended without a cause."""
        ...

    def send(self, command: Command) -> None:
        """Send commands in order. No effect if the engine has ended."""
        ...

    def flush(self) -> None:
        """Send what has been gathered at once: otherwise a link may send all commands of one turn
        of the event loop together."""
        ...

    def busy_since(self) -> float | None:
        """Since when the engine has been at its present turn (time.monotonic); None: idle."""
        ...

    def stack(self) -> str:
        """The engine's current stack; empty if the engine writes it to standard error itself."""
        ...

    def give_up(self) -> None:
        """For an engine that does not answer: deliver what has arrived, end the engine as far as
        possible, and do not wait."""
        ...

    async def stop(self) -> None:
        """Ask the engine to end, and return when it has; at once if it was given up on a thread,
        which cannot be ended."""
        ...
