"""Keys and values in pages (chapter 3): one store for all requests, cut into equal blocks.

A *block* has room for `block_size` tokens. A request holds a *block table*: the blocks of its
tokens, in order, wherever in the store they lie. A *slot* is one token's place in the store:

    slot = table[position // block_size] * block_size + position % block_size

Invariant: a block is in the free list or in tables, never in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mini.config import Config
from mini.layers import attention


class OutOfBlocks(Exception):
    """More blocks were asked for than are free."""


class BlockPool:
    """Which blocks are free. Blocks are numbers; what is in them, the store knows."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.free = list(range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self.free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that this many tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def grow(self, table: list[int], num_tokens: int) -> None:
        """Lengthen a table until it holds num_tokens. Raises OutOfBlocks and changes nothing."""
        missing = self.blocks_for(num_tokens) - len(table)
        if missing > self.num_free:
            raise OutOfBlocks(f"{missing} blocks asked for, {self.num_free} free")
        table.extend(self.take() for _ in range(missing))

    def take(self) -> int:
        return self.free.pop(0)

    def give_back(self, table: list[int]) -> None:
        """A request has ended: its blocks are anybody's. The last come first, so that what stands
        at the beginning of a text is taken last (chapter 7 is glad of it)."""
        self.free.extend(reversed(table))
        table.clear()


@dataclass(frozen=True)
class Row:
    """A request's part in a step: `count` tokens from `start` on, on the blocks of `table`."""

    table: Sequence[int]
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count


class PagedStore:
    """The memory itself: [layers, 2, slots, Hkv, D]. It never moves and never grows."""

    def __init__(self, config: Config, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        slots = num_blocks * block_size
        shape = (config.num_layers, 2, slots, config.num_kv_heads, config.head_dim)
        self.data = torch.zeros(shape)

    def slots(self, table: Sequence[int], start: int, end: int) -> Tensor:
        """Where the tokens start, ..., end - 1 of a table lie: [end - start]."""
        positions = torch.arange(start, end)
        blocks = torch.tensor(table)[positions // self.block_size]
        return blocks * self.block_size + positions % self.block_size


class Paged:
    """The store as a memory for one step of several rows, packed one after the other."""

    def __init__(self, store: PagedStore, rows: Sequence[Row]) -> None:
        self.store = store
        self.rows = rows
        self._written = torch.cat([store.slots(row.table, row.start, row.end) for row in rows])
        self._read = [store.slots(row.table, 0, row.end) for row in rows]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.store.data[layer]
        keys[self._written] = k
        values[self._written] = v
        queries = q.split([row.count for row in self.rows])
        found = [
            attention(mine, keys[slots], values[slots])
            for mine, slots in zip(queries, self._read, strict=True)
        ]
        return torch.cat(found)
