"""Files that may change while the server runs.

Invariant: `value` is always something that was read without a fault; a change that cannot be read
leaves it as it is, and the log says why, once for each change. Files are known by their identity,
size and time of change, so a mounted secret whose links are swapped is seen too.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from quire.engine.errors import ConfigError

log = logging.getLogger("quire.service")

POLL_SECONDS = 1.0

T = TypeVar("T")
_Signature = tuple[tuple[int, int, int] | None, ...]


class Refreshable(Protocol):
    """What may have to be read again."""

    def refresh(self) -> bool: ...


class WatchedFiles(Generic[T]):
    """A value that is read from files, and again when one of them changes."""

    def __init__(self, name: str, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """Reads at once. Raises ConfigError, as `read` does."""
        self._name = name
        self._paths = tuple(paths)
        self._read = read
        self._seen = self._signature()  # taken first: a change while reading is seen next time
        self.value: T = read()
        self.on_change: list[Callable[[T], None]] = []

    def refresh(self) -> bool:
        """Read again if a file has changed; whether there is a new value."""
        signature = self._signature()
        if signature == self._seen:
            return False
        self._seen = signature
        try:
            self.value = self._read()
        except ConfigError as error:
            log.error(
                "%s: the change is not taken over, the old stays in force: %s", self._name, error
            )
            return False
        log.info("%s: read again", self._name)
        for tell in self.on_change:
            tell(self.value)
        return True

    def _signature(self) -> _Signature:
        return tuple(_identity(path) for path in self._paths)


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


async def keep_fresh(watched: Sequence[Refreshable], seconds: float = POLL_SECONDS) -> None:
    """Look at files for ever, off the event loop: a slow disk must not hold up streams."""
    while True:
        await asyncio.sleep(seconds)
        for files in watched:
            await asyncio.to_thread(files.refresh)
