"""Which compiled kernels an engine needs, and whether all of them can be trusted.

Invariant: a kernel that was sealed here is used only if every byte is unchanged; otherwise it is
deleted before Triton looks for it. The list of kernels that an engine needs is stored beside them,
under a key of everything that decides their code, so another version does not find it.
"""

import json
import logging
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
        try:
            wanted = json.loads(self._list(key).read_text(encoding="utf-8"))
            names = [name for name in wanted if is_name(name)]  # nothing outside
        except (OSError, ValueError, TypeError):
            return False
        broken = [name for name in names if not self._kernels.is_whole(name)]
        for name in broken:
            self._kernels.discard(name)
        if broken:
            log.warning(
                "%d compiled kernels in %s are damaged: made anew", len(broken), self.folder
            )
        return bool(names) and len(names) == len(wanted) and not broken

    def note(self, key: str, names: Iterable[str]) -> None:
        """These kernels, as they are now, are all that a key needs. Raises OSError."""
        for name in names:
            self._kernels.seal(name)
        write_at_once(self._list(key), json.dumps(sorted(names)))

    def _list(self, key: str) -> Path:
        return self.folder / LISTS.replace("*", key)


def writable_cache(folder: Path) -> CompiledCache:
    """The cache in a folder, or in a temporary one where nothing can be written there."""
    remedy = "TRITON_CACHE_DIR names another folder"
    return CompiledCache(writable(folder, what="compiled kernels", remedy=remedy).folder)
