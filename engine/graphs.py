"""Captured decode steps: one CUDA graph holds a whole step, embedding to advanced state.

Invariant: a graph reads `row_slots` and the slots and nothing else that the host writes; rows past
the batch's end belong to the null slot. A graph's key is (rows, context bound, needs): the ladder
of rows ends in max_num_seqs, context bounds grow by four, and a bound only limits the grid of
attention, so it never changes a result. Graphs share one memory pool, hence results are to be
copied out before the next replay, in stream order.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from quire.engine.sampler import Needs, Sampled

log = logging.getLogger(__name__)

DecodeStep = Callable[[Tensor, int, Needs], Sampled]
_FIRST_CONTEXT_BOUND = 4096


class GraphKey(NamedTuple):
    rows: int
    context_bound: int
    needs: Needs


def ladder(max_num_seqs: int) -> list[int]:
    """Batch sizes to capture: fine where a step is short, coarser above; ends in max_num_seqs."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_num_seqs, 32)]
    return sorted({size for size in sizes if size < max_num_seqs} | {max_num_seqs})


def context_bounds(max_model_len: int) -> list[int]:
    """Bounds of the context length, the last one covering max_model_len."""
    bounds = [min(_FIRST_CONTEXT_BOUND, max_model_len)]
    while bounds[-1] < max_model_len:
        bounds.append(min(bounds[-1] * 4, max_model_len))
    return bounds


class DecodeGraphs:
    """Captures decode steps, at start or when first wanted, and replays them."""

    def __init__(
        self,
        step: DecodeStep,
        *,
        max_num_seqs: int,
        max_model_len: int,
        null_slot: int,
        device: torch.device,
    ) -> None:
        self._step = step
        self._sizes = ladder(max_num_seqs)
        self._bounds = context_bounds(max_model_len)
        self.row_slots = torch.full((max_num_seqs,), null_slot, dtype=torch.int32, device=device)
        self._null_rows = self.row_slots.clone()
        self._graphs: dict[GraphKey, tuple[torch.cuda.CUDAGraph, Sampled] | None] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def size_for(self, rows: int) -> int:
        """The smallest captured size that holds this many rows."""
        return next(size for size in self._sizes if size >= rows)

    def capture_ladder(self, needs: list[Needs], progress: Callable[[float], None]) -> None:
        """Capture all sizes at the first context bound, largest first: smaller ones then fit into
        the memory that the larger took."""
        keys = [GraphKey(n, self._bounds[0], need) for n in reversed(self._sizes) for need in needs]
        for done, key in enumerate(keys):
            self._capture(key)
            progress((done + 1) / len(keys))

    def replay(self, rows: int, max_context_len: int, needs: Needs) -> Sampled | None:
        """Run the step for the slots in row_slots[:size_for(rows)]; None if it must run eagerly."""
        bound = next(bound for bound in self._bounds if bound >= max_context_len)
        key = GraphKey(self.size_for(rows), bound, needs)
        if key not in self._graphs:
            self._capture(key)
        captured = self._graphs[key]
        if captured is None:
            return None
        graph, sampled = captured
        graph.replay()
        return sampled

    def _capture(self, key: GraphKey) -> None:
        try:
            # Once on null rows, so that everything is compiled and no slot moves.
            self._step(self._null_rows[: key.rows], key.context_bound, key.needs)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                sampled = self._step(self.row_slots[: key.rows], key.context_bound, key.needs)
            self._graphs[key] = (graph, sampled)
        except Exception as error:
            log.warning(
                "capturing the decode step of batch size %d failed, it runs eagerly: %s",
                key.rows,
                str(error).splitlines()[0],
            )
            self._graphs[key] = None
