"""Which compiled kernels an engine needs, and whether all of them can be trusted.

Invariant: a kernel that was sealed here is used only if every byte is unchanged; otherwise it is
deleted before Triton looks for it. The list of kernels that an engine needs is stored beside them,
under a key of everything that decides their code, so another version does not find it.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from quire.engine.runner.compile_process import LISTS
from quire.kernels.sealed import SealedFolder, is_name, writable, write_at_once

log = logging.getLogger(__name__)


class CompiledCache:
    """Triton's cache folder. All methods are safe while other processes use it too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kernels = SealedFolder(folder)

    def is_whole(self, key: str) -> bool:
        """Whether all kernels of a key are there and unchanged. Those that are not are removed."""
        wanted, names = self._read(self._list(key))
        broken = [name for name in names if not self._kernels.is_whole(name)]
        for name in broken:
            self._kernels.discard(name)
        if broken:
            log.warning(
                "%d compiled kernels in %s are damaged: made anew", len(broken), self.folder
            )
        return bool(names) and len(names) == wanted and not broken

    def count(self, key: str) -> int:
        """How many kernels a key needs; 0 where that is not known."""
        return self._read(self._list(key))[0]

    def note(self, key: str, names: Iterable[str]) -> None:
        """These kernels, as they are now, are all that a key needs. Raises OSError."""
        for name in names:
            self._kernels.seal(name)
        write_at_once(self._list(key), json.dumps(sorted(names)))

    def take_from(self, other: "CompiledCache") -> None:
        """Have what another folder has for engines, and what Triton has built in C there."""
        lists = list(other.folder.glob(LISTS))
        names = {name for path in lists for name in self._read(path)[1]}
        names |= {path.parent.name for path in other.folder.glob("*/*.so") if lists}
        for name in names:
            with contextlib.suppress(OSError):  # what is not there is made anew
                shutil.copytree(other.folder / name, self.folder / name, dirs_exist_ok=True)
                (self.folder / name).chmod(0o700)  # those of an image may not be written
        for path in lists:
            with contextlib.suppress(OSError):
                shutil.copy(path, self.folder)

    @staticmethod
    def _read(path: Path) -> tuple[int, list[str]]:
        """How many kernels a list has, and those that can be meant: none outside the folder."""
        try:
            wanted = json.loads(path.read_text(encoding="utf-8"))
            return len(wanted), [name for name in wanted if is_name(name)]
        except (OSError, ValueError, TypeError):
            return 0, []

    def _list(self, key: str) -> Path:
        return self.folder / LISTS.replace("*", key)


def writable_cache(folder: Path) -> CompiledCache:
    """The cache in a folder, or a copy in a temporary one where nothing can be written there."""
    remedy = "but for those that are there; TRITON_CACHE_DIR names another folder"
    cache = CompiledCache(writable(folder, what="compiled kernels", remedy=remedy).folder)
    if cache.folder != folder:
        cache.take_from(CompiledCache(folder))
    return cache
