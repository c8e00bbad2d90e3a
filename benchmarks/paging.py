"""Paged caches for the attention benchmarks.

Invariant: what is timed is cold and random. A case has as many distinct layers of keys and values
as exceed the L2 cache several times over, for a captured chain to walk over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KV_HEADS, HEAD_DIM = 8, 128
SCALE = HEAD_DIM**-0.5
_L2_BYTES = 60e6


class Pool:
    """Random keys and values, from which the layers of every case are cut."""

    def __init__(self, elements: int) -> None:
        self.k, self.v = (
            torch.empty(elements, dtype=torch.bfloat16, device="cuda").normal_() for _ in range(2)
        )

    def layers(self, blocks: int, block_size: int) -> list[tuple[Tensor, Tensor]]:
        """As many layers of [blocks, Hkv, block_size, D] as keep the cache cold, one at least.

        Raises ValueError where not even one fits.
        """
        size = blocks * KV_HEADS * block_size * HEAD_DIM
        fitting = self.k.numel() // size
        if not fitting:
            raise ValueError(f"{blocks} blocks of {block_size} tokens do not fit the pool")
        wanted = max(4, -(-int(6 * _L2_BYTES) // (size * 4)))
        shape = (blocks, KV_HEADS, block_size, HEAD_DIM)
        return [
            (
                self.k[i * size : (i + 1) * size].view(shape),
                self.v[i * size : (i + 1) * size].view(shape),
            )
            for i in range(min(fitting, wanted))
        ]


@dataclass(frozen=True)
class Rows:
    """A batch of contexts in a paged cache, its blocks scattered."""

    contexts: tuple[int, ...]
    block_tables: Tensor
    context_lens: Tensor
    layers: list[tuple[Tensor, Tensor]]

    @classmethod
    def build(
        cls, pool: Pool, contexts: Sequence[int], block_size: int, room: int | None = None
    ) -> "Rows":
        """room: tokens the block tables are wide, at least the longest context."""
        width = -(-max(room or 0, *contexts) // block_size)
        needed = [-(-n // block_size) for n in contexts]
        blocks = sum(needed) + 1
        order = (torch.randperm(blocks - 1) + 1).int()
        tables = torch.zeros(len(contexts), width, dtype=torch.int32)
        taken = 0
        for row, count in enumerate(needed):
            tables[row, :count] = order[taken : taken + count]
            taken += count
        return cls(
            tuple(contexts),
            tables.cuda(),
            torch.tensor(contexts, dtype=torch.int32, device="cuda"),
            pool.layers(blocks, block_size),
        )

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that one layer's attention must read."""
        return sum(self.contexts) * KV_HEADS * HEAD_DIM * 4


def event_us(call: Callable[[], object], runs: int) -> list[float]:
    """Microseconds of each of `runs` eager calls after a warm-up, for what cannot be captured."""
    call()
    pairs = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(runs)
    ]
    for before, after in pairs:
        before.record()
        call()
        after.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) * 1e3 for before, after in pairs]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||; NaN counts as infinite."""
    error = ((found.float() - wanted.float()).norm() / wanted.float().norm()).item()
    return error if error == error else float("inf")
