"""A step's inputs: what the host uploads, and the ForwardBatch that the device makes from it.

Invariant: token ids, positions, slot mappings and context lengths are computed on the device from
the slots; the host sends which slots take part and the prompt tokens that the device has not seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from quire.engine.model.forward_batch import ForwardBatch
from quire.engine.runner.compute_prompt_logprobs import stage_prompt_logprobs
from quire.engine.runner.pooling import stage_pooled
from quire.engine.runner.slots import SlotState
from quire.engine.runner.staging import Record, Staging
from quire.engine.scheduling.plan import PlanRow, StepPlan
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
    ops: Ops,
    state: SlotState,
    block_size: int,
    row_slots: Tensor,
    context_lens: Tensor,
    max_context_len: int,
) -> StepInputs:
    """The inputs of a pure decode step. row_slots: [R] int32, perhaps padded with the null slot;
    context_lens: [R] int32, an output."""
    rows, device = row_slots.shape[0], row_slots.device
    blocks = state.block_tables.shape[1]
    token_ids, positions = (torch.empty(rows, dtype=torch.int32, device=device) for _ in range(2))
    slot_mapping = torch.empty(rows, dtype=torch.int64, device=device)
    block_tables = torch.empty(rows, blocks, dtype=torch.int32, device=device)
    prepare = partial(ops.prepare_decode, row_slots, state.last_token, state.num_computed)
    made = token_ids, positions, slot_mapping, context_lens, block_tables
    prepare(state.block_tables, block_size, *made)
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
    if state.window_tables is not None:
        batch = _with_window(batch, partial(prepare, state.window_tables, block_size))
    return StepInputs(batch, row_slots)


class MixedShape(NamedTuple):
    """Numbers of decode rows, longer rows, and the longer rows' tokens; exact, or padded for a
    graph."""

    decode_rows: int
    prefill_rows: int
    prefill_tokens: int

    @staticmethod
    def of(plan: StepPlan) -> "MixedShape":
        decode = plan.num_decode_rows
        return MixedShape(decode, len(plan.rows) - decode, plan.num_tokens - decode)


def stage_mixed(
    staging: Staging,
    plan: StepPlan,
    shape: MixedShape,
    null_slot: int,
    *,
    all_sample: bool = False,
) -> None:
    """Put a mixed step's rows into the upload: which slots, how long, and the prompt tokens.

    Padding rows belong to the null slot; the last of them takes the padding tokens. In a padded
    step the sizes of all arrays follow from `shape` alone, and those that its sampler reads from
    the number of rows alone: so a graph finds them at the addresses that it captured.

    logits_rows: each row's last token; in an exact step only for rows that sample. sampled_rows:
    which rows sample; in a padded step followed by copies of the last row. all_sample: all rows
    sample, padding included.
    """
    decode, longer = plan.rows[: plan.num_decode_rows], plan.rows[plan.num_decode_rows :]
    row_slots = [row.slot for row in decode] + [null_slot] * (shape.decode_rows - len(decode))
    row_slots += [row.slot for row in longer] + [null_slot] * (shape.prefill_rows - len(longer))
    lens = [1] * shape.decode_rows + [row.num_tokens for row in longer]
    lens += [0] * (len(row_slots) - len(lens))
    total = shape.decode_rows + shape.prefill_tokens
    lens[-1] += total - sum(lens)
    every, exact = list(range(len(row_slots))), shape == MixedShape.of(plan)
    sampled = every if all_sample else _sampled_rows(plan, shape)
    if not exact:
        sampled = sampled + every[-1:] * (len(every) - len(sampled))
    ends = sampled if exact else every
    tokens = _token_ids(longer, shape.decode_rows, total)
    stage_rows(staging, shape.decode_rows, row_slots, lens, tokens, ends, sampled)
    if plan.prompt_logprobs:
        stage_prompt_logprobs(staging, plan, np.cumsum(lens, dtype=np.int64) - lens)
    if plan.pooled:
        left = np.cumsum(lens, dtype=np.int64) - 1 if exact else np.array(ends, np.int64)
        stage_pooled(staging, plan, shape.decode_rows, left)


def _token_ids(longer: Sequence[PlanRow], decode_rows: int, total: int) -> bytes:
    """The packed tokens of a mixed step: -1 for each decode row, meaning the slot's own last token;
    then those of the longer rows, and zeros."""
    known = b"\xff" * 4 * decode_rows + b"".join([row.packed for row in longer])
    return known.ljust(4 * total, b"\0")


def stage_rows(
    staging: Staging,
    decode_rows: int,
    row_slots: Sequence[int],
    lens: Sequence[int],
    tokens: bytes,
    ends: Sequence[int],
    sampled: Sequence[int],
) -> None:
    """Stage the rows for upload: slots and lengths [R], packed tokens [T], the rows whose last
    hidden states are wanted, and those that sample [L]."""
    starts = list(accumulate(lens, initial=0))
    lasts = [starts[row + 1] - 1 for row in ends]
    first = starts[decode_rows]
    longer = [start - first for start in starts[decode_rows:]]
    record = _rows_record(len(row_slots), len(sampled), len(lasts), len(longer))
    staging.put_record(record, (*row_slots, *lens, *sampled, *starts, *lasts, *longer))
    staging.put_bytes("token_ids", tokens, torch.int32, (starts[-1],))


@lru_cache(maxsize=1024)
def _rows_record(rows: int, sampled: int, lasts: int, longer: int) -> Record:
    return Record(
        ("row_slots", f"{rows}i", (rows,)),
        ("query_lens", f"{rows}i", (rows,)),
        ("sampled_rows", f"{sampled}q", (sampled,)),
        ("query_start_loc", f"{rows + 1}i", (rows + 1,)),
        ("logits_rows", f"{lasts}q", (lasts,)),
        ("prefill_start_loc", f"{longer}i", (longer,)),
    )


def _sampled_rows(plan: StepPlan, shape: MixedShape) -> list[int]:
    """Indices of the rows that sample, in a step of this shape."""
    decode, padding = plan.num_decode_rows, shape.decode_rows - plan.num_decode_rows
    rows = [index for index, row in enumerate(plan.rows) if row.samples]
    return [index if index < decode else index + padding for index in rows]


def mixed_inputs(
    ops: Ops,
    state: SlotState,
    block_size: int,
    staging: Staging,
    shape: MixedShape,
    max_query_len: int,
    max_context_len: int,
    context_lens: Tensor,
) -> StepInputs:
    """The inputs of a step with rows of any length, from the upload prepared by stage_mixed.
    context_lens: [R] int32, an output."""
    device = state.seeds.device
    rows, tokens = len(context_lens), shape.decode_rows + shape.prefill_tokens
    token_ids = staging.get("token_ids").clone()  # filled in place, and staged only once
    row_slots = staging.get("row_slots")
    positions = torch.empty(tokens, dtype=torch.int32, device=device)
    slot_mapping = torch.empty(tokens, dtype=torch.int64, device=device)
    blocks = state.block_tables.shape[1]
    block_tables = torch.empty(rows, blocks, dtype=torch.int32, device=device)
    begins = staging.get("query_start_loc")
    prepare = partial(ops.prepare_mixed, row_slots, begins, state.num_computed, state.last_token)
    made = token_ids, positions, slot_mapping, context_lens, block_tables
    prepare(state.block_tables, block_size, *made)
    batch = ForwardBatch(
        token_ids=token_ids,
        positions=positions,
        slot_mapping=slot_mapping,
        context_lens=context_lens,
        block_tables=block_tables,
        prefill_start_loc=staging.get("prefill_start_loc"),
        logits_rows=staging.get("logits_rows"),
        num_decode_rows=shape.decode_rows,
        max_query_len=max_query_len,
        max_context_len=max_context_len,
    )
    if state.window_tables is not None:
        batch = _with_window(batch, partial(prepare, state.window_tables, block_size))
    query_lens, sampled_rows = staging.get("query_lens"), staging.get("sampled_rows")
    return StepInputs(batch, row_slots, query_lens, sampled_rows)


def _with_window(batch: ForwardBatch, prepare: Callable[..., None]) -> ForwardBatch:
    """Add the inputs of sliding-window layers to a step. prepare: computes them from those layers'
    tables; what both kinds of layers share is simply written again."""
    slots, tables = torch.empty_like(batch.slot_mapping), torch.empty_like(batch.block_tables)
    prepare(batch.token_ids, batch.positions, slots, batch.context_lens, tables)
    return replace(batch, windowed=replace(batch, slot_mapping=slots, block_tables=tables))
