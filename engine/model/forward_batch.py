"""One step's inputs on the device, passed to every layer; never global.

Invariant: rows of one token each come first (`num_decode_rows` of them), so that each attention
kernel gets a contiguous part. A row's tokens are contiguous, and row order is that of the plan.
Padding rows of a captured graph belong to the null slot: their keys and values go to block 0.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat

from torch import Tensor

from quire.engine.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """T tokens of R rows, of which L sample a token.

    token_ids: [T] int32; positions: [T] int32; slot_mapping: [T] int64 (block * block_size +
    offset); context_lens: [R] int32, the new tokens included; block_tables: [R, M] int32.
    prefill_start_loc: [R - num_decode_rows + 1] int32, where each of the longer rows begins,
    counted from the first of them. logits_rows: [L] int64, tokens whose hidden state is sampled
    from, or None for all. Host ints bound what the kernels' grids must cover. windowed: the same
    step as layers with a window take it where others see all: tables and slots in their own cache.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    context_lens: Tensor
    block_tables: Tensor
    prefill_start_loc: Tensor | None
    logits_rows: Tensor | None
    num_decode_rows: int
    max_query_len: int
    max_context_len: int
    windowed: "ForwardBatch | None" = None

    @property
    def num_rows(self) -> int:
        return self.context_lens.shape[0]


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of all layers. k, v: [layers, num_blocks, kv_heads, block_size, head_dim].
    window: of the layers with a window where others see all, which are then the only ones here."""

    k: Tensor
    v: Tensor
    window: "KVCache | None" = None

    @classmethod
    def made(
        cls,
        model: ModelConfig,
        kv_heads: int,
        blocks: tuple[int, int],
        block_size: int,
        new: Callable[[tuple[int, ...]], Tensor],
    ) -> "KVCache":
        """Of a model, of `new` tensors of a size. blocks: of the layers that see all, or all layers
        that there are; of those with a window where others see all, else not looked at."""
        windowed, count = model.window_layers, model.num_layers
        block = kv_heads, block_size, model.head_dim
        k, v = (new((count - windowed, blocks[0], *block)) for _ in range(2))
        if not windowed:
            return cls(k, v)
        window_k, window_v = (new((windowed, blocks[1], *block)) for _ in range(2))
        return cls(k, v, cls(window_k, window_v))

    @property
    def num_blocks(self) -> int:
        return self.k.shape[1]

    @property
    def block_size(self) -> int:
        return self.k.shape[3]

    def by_layer(
        self, batch: ForwardBatch, full_layers: tuple[int, ...]
    ) -> Iterator[tuple[ForwardBatch, Tensor, Tensor]]:
        """Of each layer in turn, its side of the batch, and its keys and values. full_layers: those
        that see all where others have a window."""
        full = zip(repeat(batch), self.k.unbind(), self.v.unbind(), strict=False)
        if self.window is None:
            return full
        assert batch.windowed is not None
        caches = self.window.k.unbind(), self.window.v.unbind()
        windowed = zip(repeat(batch.windowed), *caches, strict=False)
        layers = range(len(self.k) + len(self.window.k))
        return (next(full if layer in full_layers else windowed) for layer in layers)
