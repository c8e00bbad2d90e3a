"""Ownership of cache blocks: ids, reference counts, the free list.

Invariant: a block is free or referenced, never both; its reference count is the number of block
tables that hold it. Block 0, the null block, belongs to nobody: padding is written there. An
unreferenced block whose content may still be hit (`prefix_cache`) counts as free and may be
allocated at any time, oldest first; only then is its content forgotten.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from itertools import chain

from quire.engine.scheduling.prefix_cache import PrefixCache

NULL_BLOCK = 0
FREE, CACHED, IN_USE, SHARED = range(4)  # values of the bytes of the block map


class BlockPool:
    """Blocks 1 to num_blocks - 1, of block_size tokens each.

    `num_blocks` sizes the cache tensor, and includes the null block.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_caching: bool = True,
        seed: int | None = None,
    ) -> None:
        if num_blocks < 2:
            raise ValueError(f"num_blocks = {num_blocks}: must be at least 2")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = PrefixCache(block_size, enable_caching, seed)
        self.evictions = 0
        self.num_shared = 0  # blocks that more than one table holds
        self.num_cached = 0  # free blocks whose content may still be hit
        self._known = self.prefix_cache.known_blocks
        self._ref_counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        self._states = bytearray(num_blocks)  # kept up to date, so that a map is one copy

    # ------------------------------------------------------------ counting

    @property
    def num_usable(self) -> int:
        """Blocks that requests can hold at all."""
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        """Unreferenced blocks, cached ones included."""
        return len(self._free)

    def blocks_needed(self, num_tokens: int) -> int:
        """Blocks for num_tokens tokens, the last one perhaps partly filled."""
        return -(-num_tokens // self.block_size)

    def block_map(self) -> bytes:
        """One byte a usable block: 0 free, 1 cached, 2 in use, 3 shared."""
        return bytes(memoryview(self._states)[1:])

    # ------------------------------------------------------------ blocks

    def num_free_among(self, blocks: Iterable[int]) -> int:
        """How many of these blocks would leave the free list if they were shared."""
        return sum(1 for block in blocks if block and self._ref_counts[block] == 0)

    def has_room(self, count: int, shared: Sequence[int]) -> bool:
        """Whether `count` blocks can be allocated once `shared` are taken."""
        left = len(self._free) - count
        return len(shared) <= left or self.num_free_among(shared) <= left

    def allocate(self, count: int) -> list[int]:
        """Allocate count blocks, longest free first. Raises ValueError if there are fewer."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked for, {len(self._free)} free")
        taken = []
        for _ in range(count):
            block, _none = self._free.popitem(last=False)
            if block in self._known:
                self.prefix_cache.forget(block)
                self.num_cached -= 1
                self.evictions += 1
            self._ref_counts[block] = 1
            self._states[block] = IN_USE
            taken.append(block)
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add a reference to each of these blocks, cached or in use. The null block is skipped: it
        marks columns without a block."""
        for block in blocks:
            if block == NULL_BLOCK:
                continue
            refs = self._ref_counts[block]
            if refs == 0:
                del self._free[block]
                self.num_cached -= block in self._known
            elif refs == 1:
                self.num_shared += 1
            self._ref_counts[block] = refs + 1
            self._states[block] = SHARED if refs else IN_USE

    def release(self, table: Sequence[int]) -> None:
        """Drop a reference to each of these blocks. Last first, so that the ends of prefixes are
        reused first."""
        for block in reversed(table):
            if block == NULL_BLOCK:  # released before, when the window had passed it
                continue
            refs = self._ref_counts[block] - 1
            if refs < 0:
                raise ValueError(f"block {block} is free already")
            self._ref_counts[block] = refs
            if refs == 1:
                self.num_shared -= 1
                self._states[block] = IN_USE
            elif refs == 0:
                self._free[block] = None
                if block in self._known:
                    self.num_cached += 1
                    self._states[block] = CACHED
                else:  # no cached content: reused first
                    self._free.move_to_end(block, last=False)
                    self._states[block] = FREE

    def forget_free(self) -> int:
        """Forget the content of every unreferenced cached block; returns how many there were.
        Blocks in use stay known: their holders read them, and others may still share them."""
        cached = [block for block in self._free if block in self.prefix_cache]
        for block in cached:
            self.prefix_cache.forget(block)
            self._states[block] = FREE
        self.num_cached = 0
        if self.prefix_cache.log is not None and not self.prefix_cache.blocks():
            self.prefix_cache.log.cleared()
        return len(cached)

    def forget_all(self) -> None:
        """Empty the prefix cache; blocks in use stay with their tables."""
        for block in self.prefix_cache.blocks():
            self.prefix_cache.forget(block)
            if self._states[block] == CACHED:
                self._states[block] = FREE
        self.num_cached = 0
        if self.prefix_cache.log is not None:
            self.prefix_cache.log.cleared()

    # ------------------------------------------------------------ integrity

    def check(self, tables: Iterable[Sequence[int]], *, gaps: bool = False) -> None:
        """Raise AssertionError unless the invariant holds. tables: all block tables. gaps: they
        have the null block in place of blocks that a window has passed."""
        held = Counter(chain.from_iterable(tables))
        assert gaps or NULL_BLOCK not in held, "a table holds the null block"
        del held[NULL_BLOCK]
        assert NULL_BLOCK not in self._free and NULL_BLOCK not in self.prefix_cache
        counts = [held.get(block, 0) for block in range(self.num_blocks)]
        assert self._ref_counts == counts, "blocks have other references than tables"
        free = [block for block, refs in enumerate(counts) if not refs and block]
        assert self._free.keys() == set(free), "a block is free and referenced, or neither"
        states = bytearray(min(refs, 2) + 1 if refs else FREE for refs in counts)
        for block in self.prefix_cache.blocks():
            states[block] = states[block] or CACHED
        assert self._states == states, "the map says otherwise"
        assert self.num_cached == self.prefix_cache.count_among(self._free)
        assert self.num_shared == sum(1 for refs in held.values() if refs > 1)
        self.prefix_cache.check()
