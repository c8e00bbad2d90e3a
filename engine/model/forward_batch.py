"""One step's inputs on the device, passed to every layer; never global.

Invariant: rows of one token each come first (`num_decode_rows` of them), so that each attention
kernel gets a contiguous part. A row's tokens are contiguous, and row order is that of the plan.
Padding rows of a captured graph belong to the null slot: their keys and values go to block 0.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """T tokens of R rows, of which L sample a token.

    token_ids: [T] int32; positions: [T] int32; slot_mapping: [T] int64 (block * block_size +
    offset); context_lens: [R] int32, the new tokens included; block_tables: [R, M] int32.
    prefill_start_loc: [R - num_decode_rows + 1] int32, where each of the longer rows begins,
    counted from the first of them. logits_rows: [L] int64, tokens whose hidden state is sampled
    from, or None for all. Host ints bound what the kernels' grids must cover.
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

    @property
    def num_rows(self) -> int:
        return self.context_lens.shape[0]


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of all layers. k, v: [layers, num_blocks, kv_heads, block_size, head_dim]."""

    k: Tensor
    v: Tensor

    @property
    def num_blocks(self) -> int:
        return self.k.shape[1]

    @property
    def block_size(self) -> int:
        return self.k.shape[3]
