"""The slots' state: a step's inputs made from it, and the slots moved on after the step.

Where the host lays these arrays in a step's upload, and how many rows there are, is no part of what
is compiled: a kernel compiled while serving would stall every stream.

Invariant: between steps everything a decode row needs (last token, tokens computed, block table)
lies on the device, in its slot; these three kernels are the only ones that read or move it. The
last slot is the null slot: padding rows use it, and its count stays 0.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_TABLE_BLOCK = 256  # block-table entries copied at once
_TOKEN_BLOCK = 512  # tokens of a row prepared at once
_LANES = 128  # rows a program of advance


@triton.jit
def _copy_table(from_ptr, to_ptr, width, BLOCK: tl.constexpr):
    """Copy one block-table row of `width` entries."""
    column = tl.arange(0, BLOCK)
    for start in range(0, width, BLOCK):
        inside = start + column < width
        entry = tl.load(from_ptr + start + column, mask=inside, other=0)
        tl.store(to_ptr + start + column, entry, mask=inside)


@triton.jit(do_not_specialize_on_alignment=["row_slots_ptr"])
def _prepare_decode_kernel(
    row_slots_ptr,  # [R]
    last_token_ptr,  # [S]
    num_computed_ptr,  # [S]
    slot_tables_ptr,  # [S, width]
    token_ids_ptr,  # [R]
    positions_ptr,  # [R]
    slot_mapping_ptr,  # [R]
    context_lens_ptr,  # [R]
    block_tables_ptr,  # [R, width]
    table_stride,
    out_stride,
    width,
    BLOCK_SIZE: tl.constexpr,
    TABLE_BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (R,): one row a program."""
    row = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    slot = tl.load(row_slots_ptr + row).to(tl.int64)
    computed = tl.load(num_computed_ptr + slot)
    table = slot_tables_ptr + slot * table_stride
    block = tl.load(table + computed // BLOCK_SIZE).to(tl.int64)
    token = tl.load(last_token_ptr + slot)
    tl.store(token_ids_ptr + row, token.to(token_ids_ptr.dtype.element_ty))
    tl.store(positions_ptr + row, computed.to(positions_ptr.dtype.element_ty))
    tl.store(context_lens_ptr + row, (computed + 1).to(context_lens_ptr.dtype.element_ty))
    tl.store(slot_mapping_ptr + row, block * BLOCK_SIZE + computed % BLOCK_SIZE)
    _copy_table(table, block_tables_ptr + row * out_stride, width, TABLE_BLOCK)


@triton.jit(do_not_specialize_on_alignment=["row_slots_ptr", "query_start_ptr", "token_ids_ptr"])
def _prepare_mixed_kernel(
    row_slots_ptr,  # [R]
    query_start_ptr,  # [R + 1]
    num_computed_ptr,  # [S]
    last_token_ptr,  # [S]
    slot_tables_ptr,  # [S, width]
    token_ids_ptr,  # [T]
    positions_ptr,  # [T]
    slot_mapping_ptr,  # [T]
    context_lens_ptr,  # [R]
    block_tables_ptr,  # [R, width]
    table_stride,
    out_stride,
    width,
    BLOCK_SIZE: tl.constexpr,
    TABLE_BLOCK: tl.constexpr,
    TOKEN_BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (R,): one row a program, its tokens in pieces of TOKEN_BLOCK."""
    row = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    slot = tl.load(row_slots_ptr + row).to(tl.int64)
    begin = tl.load(query_start_ptr + row).to(tl.int32)
    length = tl.load(query_start_ptr + row + 1).to(tl.int32) - begin
    computed = tl.load(num_computed_ptr + slot).to(tl.int32)
    last = tl.load(last_token_ptr + slot)
    table = slot_tables_ptr + slot * table_stride
    lane = tl.arange(0, TOKEN_BLOCK)
    for start in range(0, length, TOKEN_BLOCK):
        within = start + lane
        inside = within < length
        token = tl.load(token_ids_ptr + begin + within, mask=inside, other=0)
        token = tl.where(token < 0, last.to(token.dtype), token)
        where = computed + within
        block = tl.load(table + where // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
        tl.store(token_ids_ptr + begin + within, token, mask=inside)
        at = positions_ptr + begin + within
        tl.store(at, where.to(positions_ptr.dtype.element_ty), mask=inside)
        at = slot_mapping_ptr + begin + within
        tl.store(at, block * BLOCK_SIZE + where % BLOCK_SIZE, mask=inside)
    context = computed + length
    tl.store(context_lens_ptr + row, context.to(context_lens_ptr.dtype.element_ty))
    _copy_table(table, block_tables_ptr + row * out_stride, width, TABLE_BLOCK)


@triton.jit(
    do_not_specialize=["rows", "samples"],
    do_not_specialize_on_alignment=["row_slots_ptr", "query_lens_ptr", "sampled_rows_ptr"],
)
def _advance_kernel(
    row_slots_ptr,  # [R]
    query_lens_ptr,  # [R], read if LENS
    num_computed_ptr,  # [S]
    sampled_rows_ptr,  # [L], read if ROWS
    tokens_ptr,  # [L]
    last_token_ptr,  # [S]
    output_counts_ptr,  # [S, vocab], counted if COUNTS
    rows,
    samples,
    null_slot,
    vocab,
    LENS: tl.constexpr,
    ROWS: tl.constexpr,
    COUNTS: tl.constexpr,
    LANES: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(max(R, L) / LANES),): a lane moves one row on, and keeps one sampled token."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    is_row = lane < rows
    slot = tl.load(row_slots_ptr + lane, mask=is_row, other=0).to(tl.int64)
    count = tl.load(num_computed_ptr + slot, mask=is_row, other=0)
    if LENS:
        count += tl.load(query_lens_ptr + lane, mask=is_row, other=0).to(count.dtype)
    else:
        count += 1
    count = tl.where(slot == null_slot, 0, count)
    tl.store(num_computed_ptr + slot, count, mask=is_row)

    is_sample = lane < samples
    if ROWS:
        row = tl.load(sampled_rows_ptr + lane, mask=is_sample, other=0).to(tl.int64)
        slot = tl.load(row_slots_ptr + row, mask=is_sample, other=0).to(tl.int64)
    token = tl.load(tokens_ptr + lane, mask=is_sample, other=0)
    token = tl.maximum(token, 0)  # -1: the row has none, and ends; a step in flight reads an id
    at = last_token_ptr + slot
    tl.store(at, token.to(last_token_ptr.dtype.element_ty), mask=is_sample)
    if COUNTS:
        tl.atomic_add(output_counts_ptr + slot * vocab + token, 1, mask=is_sample)


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
    *,
    pdl: bool = False,
) -> None:
    """Fill a step's inputs for rows of one token each. See `reference.prepare_decode`."""
    rows = row_slots.shape[0]
    if not rows:
        return
    _prepare_decode_kernel[(rows,)](
        row_slots,
        last_token,
        num_computed,
        slot_tables,
        token_ids,
        positions,
        slot_mapping,
        context_lens,
        block_tables,
        slot_tables.stride(0),
        block_tables.stride(0),
        block_tables.shape[1],
        BLOCK_SIZE=block_size,
        TABLE_BLOCK=_TABLE_BLOCK,
        PDL=pdl,
        num_warps=1,
        launch_pdl=pdl,
    )


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
    *,
    pdl: bool = False,
) -> None:
    """Fill a step's inputs for rows of any length. See `reference.prepare_mixed`."""
    rows = row_slots.shape[0]
    if not rows:
        return
    _prepare_mixed_kernel[(rows,)](
        row_slots,
        query_start_loc,
        num_computed,
        last_token,
        slot_tables,
        token_ids,
        positions,
        slot_mapping,
        context_lens,
        block_tables,
        slot_tables.stride(0),
        block_tables.stride(0),
        block_tables.shape[1],
        BLOCK_SIZE=block_size,
        TABLE_BLOCK=_TABLE_BLOCK,
        TOKEN_BLOCK=_TOKEN_BLOCK,
        PDL=pdl,
        num_warps=4,
        launch_pdl=pdl,
    )


def advance(
    row_slots: Tensor,
    query_lens: Tensor | None,
    num_computed: Tensor,
    sampled_rows: Tensor | None,
    tokens: Tensor,
    last_token: Tensor,
    output_counts: Tensor | None,
    *,
    pdl: bool = False,
) -> None:
    """Move each slot on after a step, and keep its sampled token. See `reference.advance`."""
    rows, samples = row_slots.shape[0], tokens.shape[0]
    if not rows:
        return
    _advance_kernel[(triton.cdiv(max(rows, samples), _LANES),)](
        row_slots,
        row_slots if query_lens is None else query_lens,
        num_computed,
        row_slots if sampled_rows is None else sampled_rows,
        tokens,
        last_token,
        last_token if output_counts is None else output_counts,
        rows,
        samples,
        num_computed.shape[0] - 1,
        0 if output_counts is None else output_counts.stride(0),
        LENS=query_lens is not None,
        ROWS=sampled_rows is not None,
        COUNTS=output_counts is not None,
        LANES=_LANES,
        PDL=pdl,
        num_warps=4,
        launch_pdl=pdl,
    )
