"""Attention of one new token a row over pages (chapter 5): row by row, and all rows at once."""

import math

import torch
from torch import Tensor

from mini.layers import attention


def by_row(
    q: Tensor, keys: Tensor, values: Tensor, tables: list[list[int]], contexts: list[int], size: int
) -> Tensor:
    """q: [R, Hq, D]; keys, values: [slots, Hkv, D]; contexts: tokens a row, its new one too."""
    rows = []
    for query, table, context in zip(q, tables, contexts, strict=True):
        slots = [table[p // size] * size + p % size for p in range(context)]
        rows.append(attention(query[None], keys[slots], values[slots]))
    return torch.cat(rows)


def vectorised(
    q: Tensor, keys: Tensor, values: Tensor, tables: list[list[int]], contexts: list[int], size: int
) -> Tensor:
    """The same in one go: tables padded to the longest, and what is padding masked out."""
    longest = max(map(len, tables))
    padded = torch.tensor([table + [0] * (longest - len(table)) for table in tables])
    slots = (padded[:, :, None] * size + torch.arange(size)).flatten(1)  # [R, longest * size]
    group = q.shape[1] // keys.shape[1]
    k, v = (x[slots].repeat_interleave(group, dim=2) for x in (keys, values))
    scores = torch.einsum("rhd,rkhd->rhk", q, k) / math.sqrt(q.shape[2])
    behind = torch.arange(slots.shape[1]) >= torch.tensor(contexts)[:, None]
    weights = scores.masked_fill(behind[:, None], -math.inf).softmax(-1)
    return torch.einsum("rhk,rkhd->rhd", weights, v)
