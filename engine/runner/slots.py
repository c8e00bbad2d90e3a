"""Persistent slots: the device's state of each running request between steps.

Invariant: a slot belongs to one running request from admission until it is vacated; the host writes
it at admission and when its block table grows, and the device advances it after each step. The last
slot is the null slot: padding rows of a captured graph point at it, its block table only has the
null block, and it never advances.
"""

import struct
from collections.abc import Iterable
from functools import cache
from itertools import chain

import numpy as np
import torch

from quire.engine.request import MAX_ENDING_IDS
from quire.engine.runner.masks import MaskTable
from quire.engine.runner.staging import Record, Staging
from quire.engine.scheduling.plan import Admission, BlockUpdate

# Between these, logits divided by the temperature are finite and distinct. Below, the best is taken
# (nothing else could be drawn); above, logits make no difference.
_LEAST_TEMPERATURE, _MAX_TEMPERATURE = 1e-10, 1e30
_LEAST_REPETITION, _MAX_REPETITION = 1e-10, 1e10  # a logit times or over it is finite
_MAX_PENALTY = 1e20
_FLOATS = ("temperature", "top_p", "min_p", "repetition", "presence", "frequency")
_INTS = ("last_token", "num_computed", "top_k", "min_position")
NUMBERS = len(_FLOATS) + len(_INTS)  # of 4 bytes each, written at admission


class SlotState:
    """Per-slot tensors, [S] each with S = max_num_seqs + 1.

    temperature, top_p, min_p, repetition, presence, frequency: float32. last_token, num_computed,
    top_k, min_position: int32. seeds: int64. block_tables: [S, M] int32; window_tables: the same
    for sliding-window layers where other layers see everything, else None. stop_ids: [S, 128]
    int32, -1 where unused. prompt_mask: [S, V] bool and output_counts: [S, V] int32, maintained
    only for requests with penalties. masks: of the rows of one step, not of slots.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_blocks: int,
        vocab_size: int,
        device: torch.device,
        *,
        two_tables: bool = False,
    ) -> None:
        slots = max_num_seqs + 1
        self.null_slot = max_num_seqs
        many = len(_INTS), len(_FLOATS)
        self._numbers = torch.zeros(sum(many), slots, dtype=torch.int32, device=device)
        ints, bits = self._numbers.split(many)
        floats = bits.view(torch.float32)
        self.temperature, self.top_p, self.min_p = floats[:3].unbind(0)
        self.repetition, self.presence, self.frequency = floats[3:].unbind(0)
        self.last_token, self.num_computed, self.top_k, self.min_position = ints.unbind(0)
        self.top_p.fill_(1.0)
        self.repetition.fill_(1.0)
        self.seeds = torch.zeros(slots, dtype=torch.int64, device=device)
        self.block_tables = torch.zeros(slots, max_blocks, dtype=torch.int32, device=device)
        self.window_tables = torch.zeros_like(self.block_tables) if two_tables else None
        self._stopping: set[int] = set()  # slots that have had ending ids: only these are written
        self.stop_ids = torch.full((slots, MAX_ENDING_IDS), -1, dtype=torch.int32, device=device)
        self.prompt_mask = torch.zeros(slots, vocab_size, dtype=torch.bool, device=device)
        self.output_counts = torch.zeros(slots, vocab_size, dtype=torch.int32, device=device)
        self.masks = MaskTable(max_num_seqs, vocab_size, device)

    # ------------------------------------------------------------ written by the host

    def stage(
        self,
        staging: Staging,
        admitted: tuple[Admission, ...],
        updates: tuple[BlockUpdate, ...],
    ) -> None:
        """Put what changed into the step's upload."""
        if admitted:
            staging.put_ints("slots", [one.slot for one in admitted], "q")
            staging.put_ints("seeds", [one.sampling.seed for one in admitted], "q")
            data = _by_number("i", map(_ints, admitted)) + _by_number("f", map(_floats, admitted))
            shape = (len(self._numbers), len(admitted))
            staging.put_bytes("numbers", data, torch.int32, shape)
            self._stage_stops(staging, admitted)
        if updates:
            staging.put_ints("table_index", self._where(updates), "q")
            staging.put_ints("table_block", [block for _, _, block in updates])

    def stage_one(
        self, staging: Staging, one: Admission, updates: tuple[BlockUpdate, ...], most: int
    ) -> None:
        """The same, at once, for one admission that writes no more (see writes_more) and table
        updates padded to `most`: padding rewrites the null slot's first entry with its value."""
        left = most - len(updates)
        where = self._where(updates, left)
        blocks = [block for _, _, block in updates] + [0] * left
        numbers = one.slot, one.sampling.seed, *_ints(one), *_floats(one)
        staging.put_record(_one_record(most), (*numbers, *where, *blocks))

    def _where(self, updates: tuple[BlockUpdate, ...], padding: int = 0) -> list[int]:
        """Their places in the tables, and so many times the null slot's first."""
        width = self.block_tables.shape[1]
        where = [slot * width + column for slot, column, _ in updates]
        return where + [self.null_slot * width] * padding

    def _stage_stops(self, staging: Staging, admitted: tuple[Admission, ...]) -> None:
        """Ending ids, which few requests have and few slots have had."""
        stops = [one for one in admitted if one.sampling.ending_ids or one.slot in self._stopping]
        if stops:
            staging.put_ints("stop_slots", [one.slot for one in stops], "q")
            staging.put("stop_ids", np.array([_ending_ids(one) for one in stops], np.int32))
            self._stopping.update(one.slot for one in stops)

    def writes_more(self, one: Admission) -> bool:
        """Whether it writes more than its numbers, its seed and its blocks."""
        sampling = one.sampling
        return bool(sampling.ending_ids) or one.slot in self._stopping or sampling.has_penalties

    def stage_window(self, staging: Staging, updates: tuple[BlockUpdate, ...]) -> None:
        """The same for the tables of sliding-window layers."""
        staging.put_ints("window_index", self._where(updates), "q")
        staging.put_ints("window_block", [block for _, _, block in updates])

    def write(self, staging: Staging, admitted: tuple[Admission, ...]) -> None:
        """Scatter the upload into the slots; nothing here waits for the device."""
        if (slots := staging.find("slots")) is not None:
            self._numbers.index_copy_(1, slots, staging.get("numbers"))
            self.seeds.index_copy_(0, slots, staging.get("seeds"))
        if (stopping := staging.find("stop_slots")) is not None:
            self.stop_ids.index_copy_(0, stopping, staging.get("stop_ids"))
        index = staging.find("table_index")
        if index is not None:
            self.block_tables.view(-1).index_copy_(0, index, staging.get("table_block"))
        if self.window_tables is not None and (index := staging.find("window_index")) is not None:
            self.window_tables.view(-1).index_copy_(0, index, staging.get("window_block"))
        for one in admitted:
            if one.sampling.has_penalties:
                self._rebuild_counts(one)

    def _rebuild_counts(self, one: Admission) -> None:
        device, slot = self.seeds.device, one.slot
        ids = (*one.prompt_token_ids, *one.output_token_ids)
        known = torch.tensor(ids, dtype=torch.int64).to(device, non_blocking=True)
        prompt, outputs = known.tensor_split([len(one.prompt_token_ids)])
        self.prompt_mask[slot].zero_().index_fill_(0, prompt, True)
        ones = torch.ones_like(outputs, dtype=torch.int32)
        self.output_counts[slot].zero_().index_add_(0, outputs, ones)


@cache
def _one_record(updates: int) -> Record:
    """Of one admission and so many table updates."""
    return Record(
        ("slots", "q", (1,)),
        ("seeds", "q", (1,)),
        ("numbers", f"{len(_INTS)}i{len(_FLOATS)}f", (NUMBERS, 1)),
        ("table_index", f"{updates}q", (updates,)),
        ("table_block", f"{updates}i", (updates,)),
    )


def _by_number(code: str, rows: Iterable[tuple[float, ...]]) -> bytes:
    """The first number of each row, then the second of each, and so on."""
    numbers = list(chain.from_iterable(zip(*rows, strict=True)))
    return struct.pack(f"{len(numbers)}{code}", *numbers)


def _floats(one: Admission) -> tuple[float, ...]:
    """As the device needs them, clamped where fp32 would overflow."""
    s = one.sampling
    cold = s.temperature < _LEAST_TEMPERATURE
    return (
        0.0 if cold else min(s.temperature, _MAX_TEMPERATURE),
        s.top_p,
        s.min_p,
        min(max(s.repetition_penalty, _LEAST_REPETITION), _MAX_REPETITION),
        min(max(s.presence_penalty, -_MAX_PENALTY), _MAX_PENALTY),
        min(max(s.frequency_penalty, -_MAX_PENALTY), _MAX_PENALTY),
    )


def _ints(one: Admission) -> tuple[int, ...]:
    return one.last_token, one.num_computed, one.sampling.top_k, one.sampling.min_position


def _ending_ids(one: Admission) -> tuple[int, ...]:
    """Ids forbidden before min_position, to the slot's full width."""
    ids = one.sampling.ending_ids
    return (*ids, *(-1,) * (MAX_ENDING_IDS - len(ids)))
