"""Which block holds which prefix: hashes of full blocks, and the tokens behind them.

Invariant: a hash names full blocks only, whose keys and values have been computed by a step that
was applied; a block has one hash at most, a hash may name several blocks.

Hashes are chained 128-bit xxh3: the root is H(seed, salt), a block's is H(parent, its tokens), so a
hash stands for a whole prefix. The seed is random per process unless fixed, and the tokens are
compared on a hit, so that nobody can plant or guess a prefix of somebody else.
"""

import secrets
import struct
from collections.abc import Container, Sequence

import xxhash


class PrefixCache:
    """The index from prefixes to blocks. Whether a block is free or held, the pool knows."""

    def __init__(self, block_size: int, enabled: bool = True, seed: int | None = None) -> None:
        self.block_size = block_size
        self.enabled = enabled
        self.duplicates = 0  # blocks registered under a hash that named another one already
        self._seed = (
            secrets.token_bytes(16) if seed is None else struct.pack("<Q", seed % (1 << 64))
        )
        self._hash_of: dict[int, bytes] = {}
        self._tokens_of: dict[int, bytes] = {}
        self._blocks_of: dict[bytes, dict[int, None]] = {}

    def __contains__(self, block: int) -> bool:
        """Whether the block's content can be hit."""
        return block in self._hash_of

    def blocks(self) -> tuple[int, ...]:
        """All blocks that can be hit."""
        return tuple(self._hash_of)

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
        if not self.enabled:
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

    def register(self, block: int, block_hash: bytes, token_ids: Sequence[int], index: int) -> None:
        """Make a full, computed block known under its prefix's hash, while some table holds it.

        `index` is the block's place in token_ids.
        """
        if not self.enabled or block in self._hash_of:
            return
        named = self._blocks_of.setdefault(block_hash, {})
        self.duplicates += bool(named)
        named[block] = None
        self._hash_of[block] = block_hash
        self._tokens_of[block] = self._pack(token_ids, index)

    def forget(self, block: int) -> None:
        """The one place where a hash leaves the index. KeyError if the block has none."""
        block_hash = self._hash_of.pop(block)
        del self._tokens_of[block]
        named = self._blocks_of[block_hash]
        del named[block]
        if not named:
            del self._blocks_of[block_hash]

    # ------------------------------------------------------------ integrity

    def count_among(self, free: Container[int]) -> int:
        """How many blocks that can be hit are among these."""
        return sum(1 for block in self._hash_of if block in free)

    def check(self) -> None:
        """Raise AssertionError unless hashes, tokens and blocks agree."""
        assert self._hash_of.keys() == self._tokens_of.keys()
        named = {(b, h) for h, blocks in self._blocks_of.items() for b in blocks}
        assert named == set(self._hash_of.items()), "index and blocks disagree"
