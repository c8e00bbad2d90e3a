"""Persistent slots: what the device knows of each running request between steps.

Invariant: a slot belongs to one running request from admission until it leaves; the host writes it
at admission and when its block table grows, the device advances it after each step. The last slot
is the null slot: padding rows of a captured graph point at it, its block table is the null block
throughout, and it never advances.
"""

import numpy as np
import torch

from quire.engine.request import MAX_ENDING_IDS, Request
from quire.engine.runner.staging import Staging
from quire.engine.scheduling.plan import BlockUpdate

_FLOATS = ("temperature", "top_p", "min_p", "repetition", "presence", "frequency")
_INTS = ("last_token", "num_computed", "top_k", "min_position")


class SlotState:
    """Per-slot tensors, [S] each with S = max_num_seqs + 1.

    temperature, top_p, min_p, repetition, presence, frequency: float32. last_token, num_computed,
    top_k, min_position: int32. seeds: int64. block_tables: [S, M] int32. stop_ids: [S, 128] int32,
    -1 where unused. prompt_mask: [S, V] bool and output_counts: [S, V] int32, kept up only for
    requests with penalties.
    """

    def __init__(
        self, max_num_seqs: int, max_blocks: int, vocab_size: int, device: torch.device
    ) -> None:
        slots = max_num_seqs + 1
        self.null_slot = max_num_seqs
        self._floats = torch.zeros(len(_FLOATS), slots, dtype=torch.float32, device=device)
        self._ints = torch.zeros(len(_INTS), slots, dtype=torch.int32, device=device)
        self.temperature, self.top_p, self.min_p = self._floats[:3].unbind(0)
        self.repetition, self.presence, self.frequency = self._floats[3:].unbind(0)
        self.last_token, self.num_computed, self.top_k, self.min_position = self._ints.unbind(0)
        self.top_p.fill_(1.0)
        self.repetition.fill_(1.0)
        self.seeds = torch.zeros(slots, dtype=torch.int64, device=device)
        self.block_tables = torch.zeros(slots, max_blocks, dtype=torch.int32, device=device)
        self.stop_ids = torch.full((slots, MAX_ENDING_IDS), -1, dtype=torch.int32, device=device)
        self.prompt_mask = torch.zeros(slots, vocab_size, dtype=torch.bool, device=device)
        self.output_counts = torch.zeros(slots, vocab_size, dtype=torch.int32, device=device)

    # ------------------------------------------------------------ written by the host

    def stage(
        self, staging: Staging, admitted: tuple[Request, ...], updates: tuple[BlockUpdate, ...]
    ) -> None:
        """Put what changed into the step's upload."""
        if admitted:
            staging.put("slots", np.array([r.slot for r in admitted], np.int64))
            staging.put("seeds", np.array([_sibling_seed(r) for r in admitted], np.int64))
            staging.put("floats", np.array([_floats(r) for r in admitted], np.float32).T)
            staging.put("ints", np.array([_ints(r) for r in admitted], np.int32).T)
            staging.put("stop_ids", np.array([_ending_ids(r) for r in admitted], np.int32))
        if updates:
            width = self.block_tables.shape[1]
            where = np.array([slot * width + column for slot, column, _ in updates], np.int64)
            staging.put("table_index", where)
            staging.put("table_block", np.array([u.block for u in updates], np.int32))

    def write(self, staging: Staging, admitted: tuple[Request, ...]) -> None:
        """Scatter the upload into the slots; nothing here waits for the device."""
        if admitted:
            slots = staging.get("slots")
            self._floats[:, slots] = staging.get("floats")
            self._ints[:, slots] = staging.get("ints")
            self.seeds[slots] = staging.get("seeds")
            self.stop_ids[slots] = staging.get("stop_ids")
        index = staging.find("table_index")
        if index is not None:
            self.block_tables.view(-1)[index] = staging.get("table_block")
        for request in admitted:
            if request.sampling.has_penalties:
                self._rebuild_counts(request)

    def _rebuild_counts(self, request: Request) -> None:
        device, slot = self.seeds.device, request.slot
        known = torch.tensor(request.token_ids, dtype=torch.int64).to(device, non_blocking=True)
        prompt, outputs = known[: request.num_prompt_tokens], known[request.num_prompt_tokens :]
        self.prompt_mask[slot].zero_().index_fill_(0, prompt, True)
        ones = torch.ones_like(outputs, dtype=torch.int32)
        self.output_counts[slot].zero_().index_add_(0, outputs, ones)


def _floats(request: Request) -> tuple[float, ...]:
    s = request.sampling
    return (
        s.temperature,
        s.top_p,
        s.min_p,
        s.repetition_penalty,
        s.presence_penalty,
        s.frequency_penalty,
    )


def _ints(request: Request) -> tuple[int, ...]:
    min_position = request.num_prompt_tokens + request.sampling.min_tokens - 1
    return (
        request.token_ids[-1],
        request.num_applied_tokens,
        request.sampling.top_k,
        min_position,
    )


def _ending_ids(request: Request) -> list[int]:
    """Ids forbidden before min_tokens; none where min_tokens asks for nothing."""
    ids = sorted(request.ending_ids) if request.sampling.min_tokens > 1 else []
    return ids + [-1] * (MAX_ENDING_IDS - len(ids))


def _sibling_seed(request: Request) -> int:
    """A signed 64-bit seed, told apart by the sibling's index (splitmix64's increment)."""
    seed = (request.sampling.seed + request.index * 0x9E3779B97F4A7C15) % (1 << 64)
    return seed - (1 << 64) if seed >= 1 << 63 else seed
