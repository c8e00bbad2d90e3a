"""Triton's cache in whatever folder it stands now.

Invariant: a kernel's files are those beside its list of them. Triton itself takes that list's
paths, which are of the folder where it was compiled: elsewhere it finds none, and compiles again.
"""

import json
from pathlib import Path

from triton import knobs
from triton.runtime.cache import FileCacheManager


class MovableCache(FileCacheManager):  # type: ignore[misc]
    """One kernel's part of the cache."""

    def get_group(self, filename: str) -> dict[str, str] | None:
        listed = self.get_file(f"__grp__{filename}")
        try:
            names = json.loads(Path(listed or "").read_text(encoding="utf-8"))["child_paths"]
            return {name: path for name in names if (path := self.get_file(name)) is not None}
        except (OSError, ValueError, KeyError, TypeError):
            return None


def use() -> None:
    """From now on in this process, unless somebody has another kind of cache."""
    if knobs.cache.manager_class is None:
        knobs.cache.manager_class = MovableCache
