"""Pages that are found again (chapter 7): a pool that remembers what stands in its free blocks.

A full block is known by a hash of its tokens *and of the hash before it*: so the hash stands for
the whole text up to the block's end, and equal hashes mean equal keys and values. The last block
of a request may still be written to, so a block that is not full has no name.

Invariant: a known block holds what its hash says; it is forgotten when it is taken for new content.
"""

import hashlib
import struct
from collections.abc import Sequence

from mini.pages import BlockPool

ROOT = b"the hash before the first block"


def block_hashes(tokens: Sequence[int], block_size: int) -> list[bytes]:
    """The chained hashes of all full blocks of a text."""
    hashes: list[bytes] = []
    parent = ROOT
    for begin in range(0, len(tokens) - block_size + 1, block_size):
        block = tokens[begin : begin + block_size]
        parent = hashlib.sha256(parent + struct.pack(f"<{block_size}i", *block)).digest()
        hashes.append(parent)
    return hashes


class RememberingPool(BlockPool):
    """A pool whose free blocks keep their content until they are needed.

    policy: which free block is taken first. "lru": the one that was given back longest ago. "fifo":
    the one that was filled longest ago, however often it was found since. "none": nothing is known.
    """

    def __init__(self, num_blocks: int, block_size: int, policy: str = "lru") -> None:
        if policy not in ("lru", "fifo", "none"):
            raise ValueError(f"policy = {policy!r}: must be lru, fifo or none")
        super().__init__(num_blocks, block_size)
        self.policy = policy
        self.holders = [0] * num_blocks
        self.block_of: dict[bytes, int] = {}
        self.hash_of: dict[int, bytes] = {}  # in the order in which blocks became known
        self.evictions = 0

    def find(self, tokens: Sequence[int]) -> list[int]:
        """The blocks of the longest known prefix of a text. One token at least is left over: what
        comes next can only be told by computing the last one."""
        found = []
        for block_hash in block_hashes(tokens[:-1], self.block_size):
            if block_hash not in self.block_of:
                break
            found.append(self.block_of[block_hash])
        return found

    def share(self, table: list[int], blocks: Sequence[int]) -> None:
        """Put found blocks at the beginning of a new table."""
        for block in blocks:
            if self.holders[block] == 0:
                self.free.remove(block)
            self.holders[block] += 1
        table.extend(blocks)

    def remember(self, table: Sequence[int], tokens: Sequence[int]) -> None:
        """These tokens have been computed into this table: its full blocks can be found."""
        if self.policy == "none":
            return
        hashes = block_hashes(tokens, self.block_size)
        for block, block_hash in zip(table, hashes, strict=False):
            if block not in self.hash_of and block_hash not in self.block_of:
                self.hash_of[block] = block_hash
                self.block_of[block_hash] = block

    def take(self) -> int:
        block = self._next()
        self.free.remove(block)
        if block in self.hash_of:
            del self.block_of[self.hash_of.pop(block)]
            self.evictions += 1
        self.holders[block] = 1
        return block

    def _next(self) -> int:
        """A block that nobody remembers first; else as the policy says."""
        unknown = next((block for block in self.free if block not in self.hash_of), None)
        if unknown is not None:
            return unknown
        if self.policy == "fifo":
            free = set(self.free)
            return next(block for block in self.hash_of if block in free)
        return self.free[0]

    def give_back(self, table: list[int]) -> None:
        for block in reversed(table):
            self.holders[block] -= 1
            if self.holders[block] == 0:
                self.free.append(block)
        table.clear()
