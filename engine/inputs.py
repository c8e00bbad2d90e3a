"""A step's inputs: what the host uploads, and the ForwardBatch the device makes of it.

Invariant: token ids, positions, slot mappings and context lengths are made on the device from the
slots; the host sends which slots take part and the prompt tokens that the device has not seen.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quire.engine.forward_batch import ForwardBatch
from quire.engine.plan import StepPlan
from quire.engine.slots import SlotState
from quire.engine.staging import Staging
from quire.kernels.ops import Ops


@dataclass(frozen=True, slots=True)
class StepInputs:
    """row_slots: [R] int32. Of a mixed step also query_lens: [R] int32, and sampled_rows: [L]
    int64, the rows that sample a token."""

    batch: ForwardBatch
    row_slots: Tensor
    query_lens: Tensor | None = None
    sampled_rows: Tensor | None = None


def decode_inputs(
    ops: Ops, state: SlotState, block_size: int, row_slots: Tensor, max_context_len: int
) -> StepInputs:
    """Rows of one token each. row_slots: [R] int32, perhaps padded with the null slot."""
    rows, device = row_slots.shape[0], row_slots.device
    blocks = state.block_tables.shape[1]
    token_ids, positions, context_lens = (
        torch.empty(rows, dtype=torch.int32, device=device) for _ in range(3)
    )
    slot_mapping = torch.empty(rows, dtype=torch.int64, device=device)
    block_tables = torch.empty(rows, blocks, dtype=torch.int32, device=device)
    ops.prepare_decode(
        row_slots,
        state.last_token,
        state.num_computed,
        state.block_tables,
        block_size,
        token_ids,
        positions,
        slot_mapping,
        context_lens,
        block_tables,
    )
    batch = ForwardBatch(
        token_ids=token_ids,
        positions=positions,
        slot_mapping=slot_mapping,
        context_lens=context_lens,
        block_tables=block_tables,
        prefill_start_loc=None,
        logits_rows=None,
        num_decode_rows=rows,
        max_query_len=1,
        max_context_len=max_context_len,
    )
    return StepInputs(batch, row_slots)


def stage_mixed(staging: Staging, plan: StepPlan) -> None:
    """Put a mixed step's rows into the upload: which slots, how long, and the prompt tokens."""
    lens = np.array([row.num_tokens for row in plan.rows], np.int32)
    starts = np.zeros(len(lens) + 1, np.int32)
    np.cumsum(lens, out=starts[1:])
    tokens: list[int] = [-1] * plan.num_decode_rows  # the slot's own last token
    for row in plan.rows[plan.num_decode_rows :]:
        tokens.extend(row.request.token_ids[row.start : row.start + row.num_tokens])
    sampled = [index for index, row in enumerate(plan.rows) if row.samples]
    staging.put("token_ids", np.array(tokens, np.int32))
    staging.put("row_slots", np.array([row.slot for row in plan.rows], np.int32))
    staging.put("query_lens", lens)
    staging.put("query_start_loc", starts)
    first = plan.num_decode_rows
    staging.put("prefill_start_loc", starts[first:] - starts[first])
    if sampled:
        staging.put("sampled_rows", np.array(sampled, np.int64))
        staging.put("logits_rows", starts[1:][sampled].astype(np.int64) - 1)


def mixed_inputs(
    ops: Ops, state: SlotState, block_size: int, staging: Staging, plan: StepPlan
) -> StepInputs:
    """Rows of any length, from the upload that stage_mixed prepared."""
    device = state.seeds.device
    rows, tokens = len(plan.rows), plan.num_tokens
    token_ids = staging.get("token_ids")
    row_slots = staging.get("row_slots")
    positions = torch.empty(tokens, dtype=torch.int32, device=device)
    slot_mapping = torch.empty(tokens, dtype=torch.int64, device=device)
    context_lens = torch.empty(rows, dtype=torch.int32, device=device)
    blocks = state.block_tables.shape[1]
    block_tables = torch.empty(rows, blocks, dtype=torch.int32, device=device)
    ops.prepare_mixed(
        row_slots,
        staging.get("query_start_loc"),
        state.num_computed,
        state.last_token,
        state.block_tables,
        block_size,
        token_ids,
        positions,
        slot_mapping,
        context_lens,
        block_tables,
    )
    batch = ForwardBatch(
        token_ids=token_ids,
        positions=positions,
        slot_mapping=slot_mapping,
        context_lens=context_lens,
        block_tables=block_tables,
        prefill_start_loc=staging.get("prefill_start_loc"),
        logits_rows=staging.find("logits_rows"),
        num_decode_rows=plan.num_decode_rows,
        max_query_len=max(row.num_tokens for row in plan.rows),
        max_context_len=max(row.start + row.num_tokens for row in plan.rows),
    )
    return StepInputs(batch, row_slots, staging.get("query_lens"), staging.find("sampled_rows"))
