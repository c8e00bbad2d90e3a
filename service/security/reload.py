"""Files that may change while the server runs.

Invariant: a change is tried again until it has been read; nothing that goes wrong ends the
watching. `value` was read without a fault, from files that did not change meanwhile. Where a change
cannot be read for `GRACE_SECONDS`, the value's own fallback takes its place (keys: nobody whose key
may have been taken away gets in) or, without one, the old stays. Each failure is said once. Files
are known by identity, size and times, so a mounted secret whose links are swapped is seen too.
"""

import contextlib
import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from quire.engine.errors import ConfigError
from quire.engine.plain_file import read_whole

log = logging.getLogger("quire.service")

POLL_SECONDS = 1.0
GRACE_SECONDS = 2.0  # with two polls, well below the 5 s in which a key is to be revoked
_SETTLED_NS = 2_000_000_000  # a younger file may be written again without its times showing it
_TRIES = 3  # at once, of files that change while they are read

T = TypeVar("T")
_Signature = tuple[tuple[int, ...] | None, ...]


class Refreshable(Protocol):
    """Something that may have to be read again."""

    def refresh(self) -> bool: ...


class WatchedFiles(Generic[T]):
    """A value that is read from files, and again when one of them changes. Any thread may call
    `refresh` and take `value`."""

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        read: Callable[[], T],
        fallback: Callable[[T], T] | None = None,
        alarm: Callable[[T], str] = lambda _: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Reads at once. fallback: from the last value that was read, what is in force while a
        change cannot be. alarm: what is to be said loudly of a new value. Raises ConfigError, as
        `read` does."""
        self._name = name
        self._paths = tuple(paths)
        self._read = read
        self._fallback = fallback
        self._alarm = alarm
        self._clock = clock
        self._spare = _SpareDescriptor()
        self._lock = threading.Lock()
        self._failing_since: float | None = None
        self._said = ""
        self._seen, self.value = self._read_whole()
        self._sound = self.value

    def refresh(self) -> bool:
        """Read again if a file has changed; whether there is a new value. Never raises."""
        with self._lock:
            return self._refreshed()

    def _refreshed(self) -> bool:
        if self._seen is not None and self._signature() == self._seen:
            return False
        try:
            with self._spare:
                self._seen, value = self._read_whole()
        except Exception as error:
            return self._failed(error)
        recovered, self._failing_since, self._said = self._failing_since is not None, None, ""
        if value == self.value:  # touched, or written again as it was
            self._sound = value
            if recovered:
                log.info("%s: can be read again", self._name)
            return False
        self._sound = self.value = value
        log.info("%s: read again", self._name)
        self._sound_alarm()
        return True

    def _failed(self, error: Exception) -> bool:
        """Say so once, and fall back when it lasts. Whether that changed the value."""
        self._seen = None  # to be tried again, whatever the files look like then
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        self._say(f"{type(error).__name__}: {error}", error)
        if self._fallback is None or now - self._failing_since < GRACE_SECONDS:
            return False
        try:
            value = self._fallback(self._sound)
        except Exception as fault:
            log.critical("%s: no fallback: %s", self._name, fault)
            return False
        if value == self.value:
            return False
        self.value = value
        log.critical("%s: its change cannot be read: the old is no longer in force", self._name)
        self._sound_alarm()
        return True

    def _sound_alarm(self) -> None:
        words = self._alarm(self.value)
        if words:
            log.critical("%s: %s", self._name, words)

    def _say(self, words: str, error: Exception) -> None:
        if words == self._said:
            return
        self._said = words
        unexpected = not isinstance(error, ConfigError)
        log.error(
            "%s: the change is not applied, the old stays in force: %s",
            self._name,
            words if unexpected else error,
            exc_info=error if unexpected else None,
        )

    def _read_whole(self) -> tuple[_Signature | None, T]:
        """A value from files of one moment, and their signature; None where a later change might
        not show in it."""
        for _ in range(_TRIES):
            before, now = self._signature(), time.time_ns()
            for path in self._paths:
                _refuse_what_is_no_file(self._name, path)
            try:
                value = self._read()
            except ConfigError:
                if self._signature() == before:
                    raise
                continue
            if self._signature() == before:
                return (before if _settled(before, now) else None), value
        shown = ", ".join(map(str, self._paths))
        raise ConfigError(f"{self._name} = {shown}: changed while it was read")

    def _signature(self) -> _Signature:
        return tuple(_identity(path) for path in self._paths)


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_dev, status.st_ino, status.st_size, *times)


def _refuse_what_is_no_file(name: str, path: Path) -> None:
    """Opening a pipe would wait for its writer, and meanwhile no key could be revoked."""
    with contextlib.suppress(OSError, ValueError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{name} = {path}: is not a file")


def read_file(option: str, path: Path, most: int) -> bytes:
    """The content of a file of at most this many bytes. Never blocks, as opening a pipe would.
    Raises ConfigError."""
    try:
        return read_whole(path, most)
    except OSError as error:
        raise ConfigError(f"{option} = {path}: cannot be read: {error.strerror}") from error


def _settled(signature: _Signature, now: int) -> bool:
    """Whether all files exist, and any later change would show in their times."""
    return all(
        file is not None and all(abs(now - stamp) > _SETTLED_NS for stamp in file[-2:])
        for file in signature
    )


class _SpareDescriptor:
    """A file descriptor that is closed while files are read, so that one is free even if all others
    are taken."""

    def __init__(self) -> None:
        self._spare: int | None = None
        self._take()

    def __enter__(self) -> None:
        if self._spare is not None and not _descriptors_left():
            os.close(self._spare)
            self._spare = None

    def __exit__(self, *_: object) -> None:
        self._take()

    def __del__(self) -> None:
        if self._spare is not None:
            with contextlib.suppress(OSError):
                os.close(self._spare)

    def _take(self) -> None:
        if self._spare is None:
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY)


def _descriptors_left() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    return True


class Watcher:
    """Looks at files again and again, on a thread of its own: neither a busy event loop nor a full
    pool of threads keeps a key from being revoked."""

    def __init__(self, watched: Refreshable, seconds: float = POLL_SECONDS) -> None:
        self._watched = watched
        self._seconds = seconds
        self._asked = threading.Event()  # for a look now, or for the end
        self._stopping = False
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._watch, name="quire-files", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def look_now(self) -> None:
        """Look without waiting for the next time. If this is asked for during a look, however
        often, one more look follows; a look may hang with its disk."""
        self._asked.set()

    def stop(self) -> None:
        """Look no more. Does not wait for a slow disk."""
        self._stopping = True
        self._asked.set()

    def _watch(self) -> None:
        while True:
            self._asked.wait(self._seconds)
            self._asked.clear()  # before the look, or what is asked during it would be lost
            if self._stopping:
                return
            try:
                self._watched.refresh()
            except Exception as error:
                self._say(error)

    def _say(self, error: Exception) -> None:
        words = f"{type(error).__name__}: {error}"
        if words in self._said or len(self._said) >= 64:
            return
        self._said.add(words)
        with contextlib.suppress(Exception):  # a log that cannot be written ends nothing either
            log.error(
                "checking files for changes failed, and will be repeated: %s", words, exc_info=error
            )
