"""Attention as it was written before: for benchmarks, and to be read beside the fast kernels.

    standard_prefill     plain PyTorch, the whole matrix of scores in memory: O(N^2)
    (naive_prefill.py: the first Triton kernel, whose shared memory bounds the sequence)
    naive_decode         plain PyTorch, a Python loop over the blocks of each row
    vectorised_decode    plain PyTorch, all blocks of all rows gathered first, padded to the longest

Invariant: each computes what the fast kernels compute. Nothing in the engine calls them.
"""

import torch
from torch import Tensor

_INF = float("inf")


def standard_prefill(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention of one sequence. q: [N, Hq, D]; k, v: [N, Hkv, D]. Returns [N, Hq, D].

    Holds [Hq, N, N] scores, twice over.
    """
    tokens, q_heads, _ = q.shape
    group = q_heads // k.shape[1]
    keys = k.transpose(0, 1).repeat_interleave(group, dim=0)
    values = v.transpose(0, 1).repeat_interleave(group, dim=0)
    scores = (q.transpose(0, 1) @ keys.transpose(1, 2)).float() * scale
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).triu_(1)
    weights = torch.softmax(scores.masked_fill_(later, -_INF), dim=-1).to(q.dtype)
    return (weights @ values).transpose(0, 1)


def naive_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    scale: float,
) -> Tensor:
    """Decode attention, block after block with a running softmax. Shapes as in `reference`."""
    rows, q_heads, dim = q.shape
    _, kv_heads, block_size, _ = k_cache.shape
    grouped = q.view(rows, kv_heads, q_heads // kv_heads, dim).float()
    out = torch.zeros_like(grouped)
    for row, context in enumerate(context_lens.tolist()):
        top = torch.full_like(grouped[row, :, :, :1], -_INF)
        total = torch.zeros_like(top)
        for column in range(-(-context // block_size)):
            block = int(block_tables[row, column])
            used = min(block_size, context - column * block_size)
            k, v = k_cache[block, :, :used].float(), v_cache[block, :, :used].float()
            scores = grouped[row] @ k.transpose(1, 2) * scale
            raised = torch.maximum(top, scores.amax(-1, keepdim=True))
            weights = torch.exp(scores - raised)
            old = torch.exp(top - raised)
            total = total * old + weights.sum(-1, keepdim=True)
            out[row] = out[row] * old + weights @ v
            top = raised
        if context:
            out[row] /= total
    return out.view(rows, q_heads, dim).to(q.dtype)


def vectorised_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    scale: float,
    max_context_len: int,
) -> Tensor:
    """Decode attention on gathered copies of every row's blocks. Shapes as in `reference`."""
    rows, q_heads, dim = q.shape
    _, kv_heads, block_size, _ = k_cache.shape
    table = block_tables[:, : -(-max_context_len // block_size)].long()
    k, v = (
        cache[table].transpose(1, 2).reshape(rows, kv_heads, -1, dim).float()
        for cache in (k_cache, v_cache)
    )
    seen = torch.arange(k.shape[2], device=q.device)[None] < context_lens[:, None]
    scores = q.view(rows, kv_heads, -1, dim).float() @ k.transpose(2, 3) * scale
    weights = torch.softmax(scores.masked_fill_(~seen[:, None, None], -_INF), dim=-1)
    # A row of no context has no weights; what lies past a context may be NaN.
    weights = weights.nan_to_num_(0.0)
    v = v.masked_fill_(~seen[:, None, :, None], 0.0)
    return (weights @ v).view(rows, q_heads, dim).to(q.dtype)
