"""Captured steps: one CUDA graph holds a whole step, embedding to advanced state; or the model's
part of one, where single ids are preferred or left out: the sampler is then launched behind it.

Invariant: a graph reads the slots, the staging buffer and `row_slots`, all at fixed addresses, and
nothing else that the host writes. What it computes is a function of its key: padded numbers of rows
and tokens, a bound of the context (which only limits the grid of attention and never changes a
result) and what sampling needs. Padding belongs to the null slot. Graphs share one memory pool, so
results are to be copied out, or used up by a sampler, before the next replay, in stream order. The
current stream is the engine's own: the default stream cannot be captured.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch

from quire.engine.runner.forwarded import Forwarded
from quire.engine.runner.sampler import Needs, Sampled

log = logging.getLogger(__name__)

Done = Sampled | Forwarded  # what a step leaves, by its key

_FIRST_CONTEXT_BOUND = 4096
MOST_GRAPHS = 512
MIXED_TOKENS = (16, 32, 64, 128, 256, 512)  # prompt tokens of a mixed step worth capturing


class GraphKey(NamedTuple):
    """Padded sizes: rows of one token, longer rows and their tokens (0 in a pure decode step).
    needs: what the sampler does; None: the model's part alone."""

    decode_rows: int
    prefill_rows: int
    prefill_tokens: int
    context_bound: int
    needs: Needs | None


def captured_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes to capture: fine where a step is short, coarser above; ends in max_num_seqs."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_num_seqs, 32)]
    return sorted({size for size in sizes if size < max_num_seqs} | {max_num_seqs})


def context_bounds(max_model_len: int) -> list[int]:
    """Bounds of the context length, the last one covering max_model_len."""
    bounds = [min(_FIRST_CONTEXT_BOUND, max_model_len)]
    while bounds[-1] < max_model_len:
        bounds.append(min(bounds[-1] * 4, max_model_len))
    return bounds


class GraphSizes:
    """Which key a step falls under."""

    def __init__(self, max_num_seqs: int, max_model_len: int) -> None:
        self.decode_rows = captured_sizes(max_num_seqs)
        self.context_bounds = context_bounds(max_model_len)
        self._mixed_tokens = [n for n in MIXED_TOKENS if n <= max_model_len]
        powers = [1 << i for i in range(max_num_seqs.bit_length()) if 1 << i < max_num_seqs]
        self._powers = [*powers, max_num_seqs]

    def decode(self, rows: int, max_context_len: int, needs: Needs | None) -> GraphKey:
        """The key of a step of one-token rows alone."""
        return GraphKey(_cover(self.decode_rows, rows), 0, 0, self._bound(max_context_len), needs)

    def mixed(
        self,
        decode_rows: int,
        prefill_rows: int,
        tokens: int,
        max_context_len: int,
        needs: Needs | None,
    ) -> GraphKey | None:
        """The key of a step with longer rows; None if it is too long to be worth a graph.

        There is always room for one more row, which takes the padding tokens.
        """
        if not self._mixed_tokens or tokens > self._mixed_tokens[-1]:
            return None
        return GraphKey(
            _cover(self._powers, decode_rows) if decode_rows else 0,
            1 << prefill_rows.bit_length(),
            _cover(self._mixed_tokens, tokens),
            self._bound(max_context_len),
            needs,
        )

    def _bound(self, max_context_len: int) -> int:
        return _cover(self.context_bounds, max_context_len)


def _cover(sizes: list[int], wanted: int) -> int:
    return next(size for size in sizes if size >= wanted)


class StepGraphs:
    """The graphs captured so far. At most MOST_GRAPHS; the longest unused one goes first."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[GraphKey, tuple[torch.cuda.CUDAGraph, Done] | None] = (
            OrderedDict()
        )
        self._pool = torch.cuda.graph_pool_handle()

    def __contains__(self, key: GraphKey) -> bool:
        """Whether it was captured, or its capture has failed."""
        return key in self._graphs

    def replay(self, key: GraphKey) -> Done | None:
        """Run a captured step; None if there is none and it must run eagerly."""
        captured = self._graphs.get(key)
        if captured is None:
            return None
        self._graphs.move_to_end(key)
        graph, done = captured
        graph.replay()
        return done

    def capture(self, key: GraphKey, step: Callable[[], Done]) -> None:
        """Record `step`, which has run before (so everything is compiled), without running it."""
        if len(self._graphs) >= MOST_GRAPHS:
            self._graphs.popitem(last=False)
        try:
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                done = step()
            finally:
                graph.capture_end()
            self._graphs[key] = (graph, done)
        except Exception as error:
            log.warning(
                "capturing the step of batch size %d failed, it runs eagerly: %s",
                key.decode_rows + key.prefill_rows,
                (str(error).splitlines() or [type(error).__name__])[0],
            )
            self._graphs[key] = None
            # torch leaves the pool of a broken capture unusable; what is captured keeps its own.
            self._pool = torch.cuda.graph_pool_handle()
