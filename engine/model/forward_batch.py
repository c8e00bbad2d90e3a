"""One step's inputs on the device, passed to every layer; never global.

Invariant: decode rows (one token each, `num_decode_rows` of them) come first, so that each
attention kernel gets a contiguous part. A row's tokens are contiguous, and rows are in the plan's
order. Padding rows of a captured graph belong to the null slot: their keys and values go to block
0.
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
    offset); context_lens: [R] int32, including the new tokens; block_tables: [R, M] int32.
    prefill_start_loc: [R - num_decode_rows + 1] int32, offset of each longer row from the first of
    them. logits_rows: [L] int64, tokens whose hidden states give logits, or None for all. Host ints
    bound the kernels' grids. windowed: the same step for sliding-window layers where others see
    everything, with the tables and slots of their own cache.
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
    window: the cache of the sliding-window layers, where others see everything; then k and v here
    are those of the others only."""

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
        """The cache of a model. new: makes a tensor of a size. blocks: numbers of blocks for layers
        that see everything (or for all layers), and for sliding-window layers where there are
        both."""
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
        """Each layer's batch inputs, keys and values in turn. full_layers: the layers that see
        everything, if others have a window."""
        full = zip(repeat(batch), self.k.unbind(), self.v.unbind(), strict=False)
        if self.window is None:
            return full
        assert batch.windowed is not None
        caches = self.window.k.unbind(), self.window.v.unbind()
        windowed = zip(repeat(batch.windowed), *caches, strict=False)
        layers = range(len(self.k) + len(self.window.k))
        return (next(full if layer in full_layers else windowed) for layer in layers)
