"""Where compiled kernels are kept, and whether what is kept can be trusted.

Invariant: a kernel that was sealed here is taken from the cache only while every byte is as it was
sealed; one that is not is thrown away before Triton looks for it. Which kernels an engine needs is
kept beside them, by a key that names all that decides their code, so another version finds nothing.
A folder that cannot be written is replaced by a temporary one, and said.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)

_SEAL = "quire.sha256"
_PROBE = bytes(1 << 16)


class CompiledCache:
    """Triton's cache folder. All methods are safe beside other processes that do the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def is_whole(self, key: str) -> bool:
        """Whether all kernels of a key are there as they were sealed. What is not is removed."""
        try:
            wanted = json.loads(self._list(key).read_text(encoding="utf-8"))
            names = [name for name in wanted if Path(name).name == name]  # nothing outside
            broken = [name for name in names if not self._is_sealed(name)]
        except (OSError, ValueError, TypeError):
            return False
        for name in broken:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        if broken:
            log.warning(
                "%d compiled kernels in %s are damaged: made anew", len(broken), self.folder
            )
        return bool(names) and len(names) == len(wanted) and not broken

    def seal(self, name: str) -> None:
        """Note what a kernel's files are now. Raises OSError."""
        folder = self.folder / name
        _write(folder / _SEAL, json.dumps(_digests(folder)))

    def note(self, key: str, names: Iterable[str]) -> None:
        """These kernels, all sealed, are all that a key needs. Raises OSError."""
        _write(self._list(key), json.dumps(sorted(names)))

    def _is_sealed(self, name: str) -> bool:
        folder = self.folder / name
        try:
            sealed = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
            return bool(sealed) and _digests(folder).items() >= sealed.items()
        except (OSError, ValueError, AttributeError):
            return False

    def _list(self, key: str) -> Path:
        return self.folder / f"quire-{key}.json"


def writable_cache(folder: Path) -> CompiledCache:
    """The cache in a folder, or in a temporary one where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            probe.write(_PROBE)
        return CompiledCache(folder)
    except OSError as error:
        instead = Path(tempfile.mkdtemp(prefix="quire-kernels-"))
        log.warning(
            "kernels cannot be kept in %s (%s): they are compiled anew at each start "
            "(TRITON_CACHE_DIR names another folder)",
            folder,
            error.strerror,
        )
        return CompiledCache(instead)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(entry for entry in folder.iterdir() if entry.name != _SEAL and entry.is_file())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _write(path: Path, text: str) -> None:
    """At once, or not at all."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
