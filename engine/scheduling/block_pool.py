"""Who holds which cache block: ids, reference counts, the free list, and the prefix index.

Invariant: a block is free or referenced, never both; its reference count is the number of block
tables that hold it; a hash in the index names full blocks only, whose keys and values have been
computed by a step that was applied. Block 0, the null block, belongs to nobody: padding is written
there. A cached block that nobody refers to is a free block with a memory: it counts as free and may
be taken at any time, oldest first; only then is its hash forgotten.

Hashes are chained 128-bit xxh3: the root is H(seed, salt), a block's is H(parent, its tokens), so a
hash stands for a whole prefix. The seed is random per process unless fixed, and the tokens are
compared on a hit, so that nobody can plant or guess a prefix of somebody else.
"""

import secrets
import struct
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

import xxhash

NULL_BLOCK = 0


class BlockPool:
    """Blocks 1 to num_blocks - 1, of block_size tokens each.

    `num_blocks` is the one number that the cache tensor is made from, the null block included.
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
        self.enable_caching = enable_caching
        self.evictions = 0
        self.duplicates = 0
        self.num_shared = 0  # blocks that more than one table holds
        self.num_cached = 0  # free blocks whose content may still be hit
        self._seed = (
            secrets.token_bytes(16) if seed is None else struct.pack("<Q", seed % (1 << 64))
        )
        self._ref_counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        self._hash_of: dict[int, bytes] = {}
        self._tokens_of: dict[int, bytes] = {}
        self._blocks_of: dict[bytes, dict[int, None]] = {}

    # ------------------------------------------------------------ counting

    @property
    def num_usable(self) -> int:
        """Blocks that requests can hold at all."""
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        """Blocks nobody refers to, cached ones included."""
        return len(self._free)

    def blocks_needed(self, num_tokens: int) -> int:
        """Blocks that num_tokens tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def block_map(self) -> bytes:
        """One byte a usable block: 0 free, 1 cached, 2 in use, 3 shared."""
        states = bytearray(self.num_usable)
        for block in range(1, self.num_blocks):
            refs = self._ref_counts[block]
            states[block - 1] = min(refs, 2) + 1 if refs else int(block in self._hash_of)
        return bytes(states)

    # ------------------------------------------------------------ hashes

    def root_hash(self, salt: bytes) -> bytes:
        """The parent of every first block under one salt."""
        return xxhash.xxh3_128_digest(self._seed + struct.pack("<I", len(salt)) + salt)

    def extend_hashes(
        self, hashes: list[bytes], salt: bytes, token_ids: Sequence[int], num_blocks: int
    ) -> None:
        """Append to `hashes` until it covers the first num_blocks full blocks of token_ids."""
        if len(hashes) >= num_blocks:
            return
        parent = hashes[-1] if hashes else self.root_hash(salt)
        for index in range(len(hashes), num_blocks):
            parent = xxhash.xxh3_128_digest(parent + self._pack(token_ids, index))
            hashes.append(parent)

    def _pack(self, token_ids: Sequence[int], index: int) -> bytes:
        size = self.block_size
        return struct.pack(f"<{size}i", *token_ids[index * size : (index + 1) * size])

    # ------------------------------------------------------------ blocks

    def match(self, hashes: Sequence[bytes], token_ids: Sequence[int]) -> list[int]:
        """Cached blocks of the longest known prefix; none is taken. At most len(hashes) blocks."""
        found: list[int] = []
        if not self.enable_caching:
            return found
        for index, block_hash in enumerate(hashes):
            blocks = self._blocks_of.get(block_hash)
            if not blocks:
                break
            block = next(iter(blocks))
            if self._tokens_of[block] != self._pack(token_ids, index):
                break
            found.append(block)
        return found

    def num_free_among(self, blocks: Iterable[int]) -> int:
        """How many of these blocks would leave the free list if they were shared."""
        return sum(1 for block in blocks if self._ref_counts[block] == 0)

    def allocate(self, count: int) -> list[int]:
        """Take count blocks, longest free first. Raises ValueError if there are fewer."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked for, {len(self._free)} free")
        taken = []
        for _ in range(count):
            block, _none = self._free.popitem(last=False)
            if block in self._hash_of:
                self._forget(block)
                self.num_cached -= 1
                self.evictions += 1
            self._ref_counts[block] = 1
            taken.append(block)
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One more table holds each of these blocks, cached or in use."""
        for block in blocks:
            refs = self._ref_counts[block]
            if refs == 0:
                del self._free[block]
                self.num_cached -= block in self._hash_of
            elif refs == 1:
                self.num_shared += 1
            self._ref_counts[block] = refs + 1

    def release(self, table: Sequence[int]) -> None:
        """One table less holds these blocks. Last first, so that tails are taken again first."""
        for block in reversed(table):
            refs = self._ref_counts[block] - 1
            if refs < 0:
                raise ValueError(f"block {block} is free already")
            self._ref_counts[block] = refs
            if refs == 1:
                self.num_shared -= 1
            elif refs == 0:
                self._free[block] = None
                if block in self._hash_of:
                    self.num_cached += 1
                else:  # nothing to remember: taken first
                    self._free.move_to_end(block, last=False)

    def register(self, block: int, block_hash: bytes, token_ids: Sequence[int], index: int) -> None:
        """Make a full, computed block known under its prefix's hash.

        `index` is the block's place in token_ids. Several blocks may have one hash; a block has
        one at most.
        """
        if not self.enable_caching or block in self._hash_of:
            return
        named = self._blocks_of.setdefault(block_hash, {})
        self.duplicates += bool(named)
        named[block] = None
        self._hash_of[block] = block_hash
        self._tokens_of[block] = self._pack(token_ids, index)

    def forget_all(self) -> None:
        """Empty the prefix cache; blocks in use stay with their tables."""
        for block in tuple(self._hash_of):
            self._forget(block)
        self.num_cached = 0

    def _forget(self, block: int) -> None:
        """The one place where a hash leaves the index."""
        block_hash = self._hash_of.pop(block)
        del self._tokens_of[block]
        named = self._blocks_of[block_hash]
        del named[block]
        if not named:
            del self._blocks_of[block_hash]

    # ------------------------------------------------------------ integrity

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless the invariant holds; `tables` are all that exist."""
        held = Counter(block for table in tables for block in table)
        assert NULL_BLOCK not in held, "a table holds the null block"
        assert NULL_BLOCK not in self._free and NULL_BLOCK not in self._hash_of
        for block in range(1, self.num_blocks):
            refs = self._ref_counts[block]
            assert refs == held[block], f"block {block}: {refs} references, {held[block]} tables"
            assert (refs == 0) == (block in self._free), f"block {block}: free and referenced"
        assert self.num_cached == sum(1 for block in self._hash_of if block in self._free)
        assert self.num_shared == sum(1 for refs in held.values() if refs > 1)
        assert self._hash_of.keys() == self._tokens_of.keys()
        named = {(b, h) for h, blocks in self._blocks_of.items() for b in blocks}
        assert named == set(self._hash_of.items()), "index and blocks disagree"
