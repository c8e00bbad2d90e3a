"""The blocks that both prefix caches hold: where layers differ, only those can be hit.

Invariant: for each hash, as many blocks are reported as there are in the cache that has fewer. So
events and snapshots agree, as those of one cache do.
"""

from collections import Counter

from quire.engine.scheduling.kv_events import KvEvent, KvLog
from quire.engine.scheduling.prefix_cache import PrefixCache


class PairedCache:
    """Watched in place of one cache."""

    def __init__(self, one: PrefixCache, other: PrefixCache) -> None:
        self._caches = one, other
        self._log: KvLog | None = None

    @property
    def log(self) -> KvLog | None:
        """The log of the watchers."""
        return self._log

    @log.setter
    def log(self, log: KvLog | None) -> None:
        self._log = log
        one, other = self._caches
        if log is None:
            one.log = other.log = None
            return
        first, second = Counter(one.hashes()), Counter(other.hashes())
        one.log, other.log = _Side(log, first, second), _Side(log, second, first)

    def snapshot(self) -> tuple[KvEvent, ...]:
        """One STORED a block that both hold, parents before their children."""
        one, other = self._caches
        left = Counter(other.hashes())
        held = []
        for event in one.snapshot():
            if left[event.block_hash]:
                left[event.block_hash] -= 1
                held.append(event)
        return tuple(held)


class _Side(KvLog):
    """The log of one of the two caches: reports what changes for the pair. mine, theirs: blocks by
    hash."""

    def __init__(self, log: KvLog, mine: Counter[bytes], theirs: Counter[bytes]) -> None:
        super().__init__()
        self._told = log
        self._mine = mine
        self._theirs = theirs

    def stored(self, block_hash: bytes, parent: bytes, tokens: bytes, salt: bytes) -> None:
        self._mine[block_hash] += 1
        if self._mine[block_hash] <= self._theirs[block_hash]:
            self._told.stored(block_hash, parent, tokens, salt)

    def removed(self, block_hash: bytes) -> None:
        if self._mine[block_hash] <= self._theirs[block_hash]:
            self._told.removed(block_hash)
        self._mine[block_hash] -= 1
        if not self._mine[block_hash]:
            del self._mine[block_hash]

    def cleared(self) -> None:
        self._told.cleared()
