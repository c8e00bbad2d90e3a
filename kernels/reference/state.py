"""The slots' state: a step's inputs made from it, slots moved on, whole blocks copied."""

import torch
from torch import Tensor

from quire.kernels.reference.kv_format import as_stored


def copy_blocks(k_cache: Tensor, v_cache: Tensor, source: Tensor, target: Tensor) -> None:
    """Copy whole blocks, in every layer.

    caches: [layers, num_blocks, kv_heads, block_size, head_dim]; source, target: [C] int64.
    """
    for cache in (as_stored(k_cache), as_stored(v_cache)):
        cache[:, target] = cache[:, source]


def prepare_decode(
    row_slots: Tensor,
    last_token: Tensor,
    num_computed: Tensor,
    slot_tables: Tensor,
    block_size: int,
    token_ids: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
) -> None:
    """Fill a step's inputs for rows of one token each, from what the slots hold.

    row_slots: [R]; last_token, num_computed: [S] int32; slot_tables: [S, M] int32.
    Outputs, [R] each: token_ids, positions, slot_mapping (int64), context_lens; block_tables:
    [R, M].
    """
    slots = row_slots.long()
    tables = slot_tables[slots]
    computed = num_computed[slots]
    token_ids.copy_(last_token[slots])
    positions.copy_(computed)
    context_lens.copy_(computed + 1)
    block_tables.copy_(tables)
    blocks = tables.gather(1, (computed // block_size).long()[:, None])[:, 0]
    slot_mapping.copy_(blocks.long() * block_size + computed % block_size)


def prepare_mixed(
    row_slots: Tensor,
    query_start_loc: Tensor,
    num_computed: Tensor,
    last_token: Tensor,
    slot_tables: Tensor,
    block_size: int,
    token_ids: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
) -> None:
    """The same for rows of any length; token_ids: [T] comes filled, -1 where the slot's last
    sampled token stands in. query_start_loc: [R + 1]; num_computed: [S]. Outputs as above, per
    token [T] or per row [R].
    """
    slots = row_slots.long()
    lens = query_start_loc.diff()
    rows = torch.repeat_interleave(
        torch.arange(len(slots), device=slots.device), lens, output_size=len(token_ids)
    )
    within = torch.arange(len(token_ids), device=slots.device) - query_start_loc[rows]
    computed = num_computed[slots]
    tables = slot_tables[slots]
    where = computed[rows] + within
    token_ids.copy_(torch.where(token_ids < 0, last_token[slots][rows], token_ids))
    positions.copy_(where)
    context_lens.copy_(computed + lens)
    block_tables.copy_(tables)
    blocks = tables[rows, where // block_size].long()
    slot_mapping.copy_(blocks * block_size + where % block_size)


def advance(
    row_slots: Tensor,
    query_lens: Tensor | None,
    num_computed: Tensor,
    sampled_rows: Tensor | None,
    tokens: Tensor,
    last_token: Tensor,
    output_counts: Tensor | None,
) -> None:
    """After a step: move each slot on, and remember its sampled token for the next one.

    row_slots: [R]; query_lens: [R] (None: all 1); sampled_rows: [L] rows that sampled (None: all);
    tokens: [L], -1 for none (kept as 0); output_counts: [S, V] int32, counted up unless None. The
    null slot (the last one) stays where it is: its rows are padding.
    """
    slots = row_slots.long()
    null = num_computed.shape[0] - 1
    step = torch.ones_like(row_slots) if query_lens is None else query_lens
    num_computed[slots] = (num_computed[slots] + step.int()) * (slots != null)
    sampled = slots if sampled_rows is None else slots[sampled_rows.long()]
    tokens = tokens.clamp(min=0)
    last_token[sampled] = tokens.to(last_token.dtype)
    if output_counts is not None:
        one = torch.ones_like(sampled, dtype=output_counts.dtype)
        output_counts.index_put_((sampled, tokens.long()), one, accumulate=True)
