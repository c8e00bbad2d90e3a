"""Runs a model without the engine: one prompt, a cache of its own, hand-built batches."""

from functools import partial

import torch
from torch import Tensor

from quire.engine.model.base import CausalModel
from quire.engine.model.forward_batch import ForwardBatch, KVCache


def new_cache(model: CausalModel, tokens: int, block_size: int = 16) -> KVCache:
    """A cache for `tokens` tokens, the null block beside them, filled with NaN: none may leak."""
    blocks = -(-tokens // block_size) + 1
    new = partial(torch.full, fill_value=torch.nan, dtype=model.dtype, device=model.device)
    both = blocks, blocks + 3  # so that ids differ where layers do
    return KVCache.made(model.config, model.num_kv_heads, both, block_size, new)


def batch_for(tokens: list[int], computed: int, kv: KVCache) -> ForwardBatch:
    """One row: `tokens` after `computed` others. Blocks are used from the last one down."""
    device, count = kv.k.device, len(tokens)
    positions = torch.arange(computed, computed + count, dtype=torch.int32, device=device)
    table = torch.arange(kv.num_blocks - 1, 0, -1, dtype=torch.int32, device=device)
    blocks = table[(positions // kv.block_size).long()].long()
    decode = count == 1
    windowed = None if kv.window is None else batch_for(tokens, computed, kv.window)
    start_loc = torch.tensor([0, count], dtype=torch.int32, device=device)
    return ForwardBatch(
        token_ids=torch.tensor(tokens, dtype=torch.int32, device=device),
        positions=positions,
        slot_mapping=blocks * kv.block_size + positions % kv.block_size,
        context_lens=torch.tensor([computed + count], dtype=torch.int32, device=device),
        block_tables=table[None],
        prefill_start_loc=None if decode else start_loc,
        logits_rows=None,
        num_decode_rows=int(decode),
        max_query_len=count,
        max_context_len=computed + count,
        windowed=windowed,
    )


def all_logits(model: CausalModel, tokens: list[int]) -> Tensor:
    """Logits after every token of a prompt, in one step: [T, V] fp32."""
    kv = new_cache(model, len(tokens))
    return model.logits(model.forward(batch_for(tokens, 0, kv), kv), None)


def greedy_tokens(model: CausalModel, prompt: list[int], count: int) -> tuple[list[int], Tensor]:
    """`count` greedy tokens, and the logits each was chosen from: [count, V] fp32."""
    kv = new_cache(model, len(prompt) + count)
    step, computed = list(prompt), 0
    chosen: list[int] = []
    logits: list[Tensor] = []
    for _ in range(count):
        hidden = model.forward(batch_for(step, computed, kv), kv)
        logits.append(model.logits(hidden, torch.tensor([len(step) - 1], device=model.device)))
        computed += len(step)
        step = [int(logits[-1].argmax())]
        chosen += step
    return chosen, torch.cat(logits)
