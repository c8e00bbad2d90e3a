"""Folders of compiled code that are reused only if they are unchanged.

Invariant: an entry (a folder of files) is whole only if every byte is as it was when it was sealed:
its seal holds the digest of each file. An entry that `making` makes appears under its name in one
step. Any number of processes may read, make and discard entries at once. If the folder cannot be
written, a temporary one is used, with a line in the log; it is locked while its process lives, and
whoever needs another one removes those that nobody holds, of processes that were killed.
"""

import atexit
import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

SEAL = "quire.sha256"
_PROBE = bytes(1 << 20)  # as much as an entry may have
_OTHERS_WRITE = 0o022
_TEMPORARY = "quire-compiled-"
_LOCK = "in-use.lock"  # of a temporary folder: locked while its process lives


def is_name(text: object) -> bool:
    """Whether an entry can be called so: one part of a path, which leads nowhere else."""
    return isinstance(text, str) and text not in ("", ".", "..") and not {"/", "\0"} & set(text)


class SealedFolder:
    """Entries by their names, each a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def is_whole(self, name: str) -> bool:
        """Whether all files of an entry are there as they were sealed; there may be others."""
        entry = self.folder / name
        try:
            sealed = json.loads((entry / SEAL).read_text(encoding="utf-8"))
            return bool(sealed) and _digests(entry).items() >= sealed.items()
        except (OSError, ValueError, AttributeError):
            return False

    def is_ours(self, name: str) -> bool:
        """Whether only this user, or root, could have written an entry."""
        entry = self.folder / name
        try:
            states = [path.stat() for path in (entry, *entry.iterdir())]
        except OSError:
            return False
        return all(
            state.st_uid in (0, os.geteuid()) and not state.st_mode & _OTHERS_WRITE
            for state in states
        )

    def seal(self, name: str) -> None:
        """Note what an entry's files are now. Raises OSError."""
        write_at_once(self.folder / name / SEAL, json.dumps(_digests(self.folder / name)))

    def discard(self, name: str) -> None:
        """Throw an entry away, as far as can be done. Raises ValueError for no entry's name."""
        if not is_name(name):
            raise ValueError(f"{name!r} is not the name of an entry")
        shutil.rmtree(self.folder / name, ignore_errors=True)

    @contextlib.contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """Yields a folder to make an entry in, and then seals it, in place of any that was there.

        Raises OSError. What was opened in that folder stays open.
        """
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=self.folder) as scratch:
            made = SealedFolder(Path(scratch))
            entry = made.folder / name
            entry.mkdir(mode=0o700)
            yield entry
            for file in entry.iterdir():
                file.chmod(file.stat().st_mode & ~_OTHERS_WRITE)
            made.seal(name)
            self._take(entry)

    def _take(self, entry: Path) -> None:
        target = self.folder / entry.name
        try:
            entry.rename(target)
        except OSError:  # one is there already, and a folder is not replaced in one step
            with contextlib.suppress(OSError):
                target.rename(entry.with_name("old"))
            with contextlib.suppress(OSError):  # another process has been quicker: as good
                entry.rename(target)


def writable(folder: Path, *, what: str, remedy: str = "") -> SealedFolder:
    """A folder, or a temporary one that ends with this process where nothing can be written there.

    what: is kept there, for the log; remedy: what a user could do about it.
    """
    try:
        probe(folder)
        return SealedFolder(folder)
    except OSError as error:
        _remove_left()
        instead = _temporary()
        log.warning(
            "%s cannot be kept in %s (%s): made anew at each start%s",
            what,
            folder,
            error.strerror,
            remedy and f" ({remedy})",
        )
        return SealedFolder(instead)


def _temporary() -> Path:
    """A folder that ends with this process; if this is killed, with the next `_remove_left`."""
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if fcntl is None:
        return folder
    new = folder / f"{_LOCK}.new"
    held = os.open(new, os.O_CREAT | os.O_RDWR, 0o600)  # it stays open
    fcntl.flock(held, fcntl.LOCK_EX)
    new.rename(folder / _LOCK)  # locked from its first moment under this name
    return folder


def _remove_left() -> None:
    """The temporary folders of processes of this user that have ended without removing them."""
    if fcntl is None:
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):  # none of ours, in use, or already removed
            held = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(held).st_uid == folder.lstat().st_uid == os.geteuid():
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(held)


def probe(folder: Path, mode: int = 0o700) -> None:
    """Make a folder, with this mode where it is new, and write into it. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=mode)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(_PROBE)


def write_at_once(path: Path, text: str) -> None:
    """At once, or not at all. Raises OSError."""
    # Not by the process's number alone: containers that share a folder have the same ones.
    beside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _digests(entry: Path) -> dict[str, str]:
    # What begins as a seal is one, or another process's that is not yet in its place.
    inside = (file for file in entry.iterdir() if not file.name.startswith(SEAL))
    files = sorted(file for file in inside if file.is_file())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
