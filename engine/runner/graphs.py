"""Captured steps: the model is one CUDA graph, the sampler another.

The model's part of a step goes from the embedding to hidden states. A sampler, for a number of
rows, goes from the LM head to the slots' new state, and serves the model graphs of all shapes. With
masks it is two graphs, so that logits are computed while the host makes the masks. Only plain steps
of few rows are one graph from end to end: they would suffer most from a second launch.

Invariant: a graph reads the slots, the staging buffer, `row_slots`, masks and the hand-over to the
sampler (`model_output.SamplerInputs`), all at fixed addresses, and nothing else that the host
writes. What it computes is a function of its key: padded numbers of rows and tokens, a bound of the
context (which only limits the grid of attention and never changes a result) and what sampling
needs. Padding belongs to the null slot. Graphs share one memory pool, so results must be copied
out, or consumed by a sampler, before the next replay, in stream order. The current stream is the
engine's own: the default stream cannot be captured.
"""

import logging
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from quire.engine.runner.inputs import MixedShape
from quire.engine.runner.model_output import ModelOutput
from quire.engine.runner.sampler import Needs, Sampled

log = logging.getLogger(__name__)

Done = Sampled | ModelOutput  # what a step returns, depending on its key

_FIRST_CONTEXT_BOUND = 4096
_SHORT_CONTEXT = 256  # of one request's first tokens, whose attention needs no merge then
_LONE_ROWS = 2  # longer rows of a step of one prompt: its own and the padding's
MAX_GRAPHS = 512
# Numbers of prompt tokens worth capturing: a longer step's launches take less time than its work.
PROMPT_TOKENS: tuple[int, ...] = (
    *(16, 32, 64),
    *range(128, 1024, 128),
    *range(1024, 4096, 256),
    *range(4096, 8193, 512),
)
FIRST_PROMPTS = (16, 32, 64, 128, 256, 512, 1024, 2048, 3072, 4096)  # captured before all others
_MANY_TOKENS = 64  # above, rows are padded coarsely: they cost little beside so many tokens
_BURST_ROWS = (0, 1, 4, 16, 64)  # decode rows beside the prompts of a burst
_BURST_PROMPTS = ((1, 65, 1024), (2, 65, 1024), (8, 513, 4096), (32, 2049, 8192))
"""(least number of prompts that come together, least and most tokens) of the steps captured in
spare time: for calls of some 70 tokens, and most of a few hundred."""
_KINDS = (Needs(), Needs(draws=True), Needs(draws=True, filters=True))  # what most rows need
_MAX_SAMPLED = 256  # padded rows up to which a sampler after prompts is captured
FUSED_ROWS = 8  # rows up to which a plain step is one graph with its sampler
FUSED_TOKENS = 128  # and prompt tokens: with more, the sampler is launched before the model ends


class GraphKey(NamedTuple):
    """Padded sizes: decode rows, longer rows and their tokens (0 in a pure decode step). needs:
    what the sampler does; None: only the model's part."""

    decode_rows: int
    prefill_rows: int
    prefill_tokens: int
    context_bound: int
    needs: Needs | None = None

    @property
    def rows(self) -> int:
        return self.decode_rows + self.prefill_rows

    @property
    def shape(self) -> MixedShape:
        return MixedShape(self.decode_rows, self.prefill_rows, self.prefill_tokens)


class SamplerKey(NamedTuple):
    """The sampler that follows the model's part of a step. rows: padded. prompts: the step has
    longer rows; which rows sample is in the upload."""

    rows: int
    needs: Needs
    prompts: bool = False

    @property
    def shape(self) -> MixedShape:
        """Of some step with so many rows."""
        return MixedShape(0, self.rows, self.rows)


class WriteKey(NamedTuple):
    """The upload and state writes of a step that admits one request: padded numbers of table
    entries and of copied blocks. turn: which of the host buffers it uses."""

    updates: int
    copies: int
    turn: int = 0

    @property
    def rows(self) -> int:
        return 1


Key = GraphKey | SamplerKey


_PLAIN = (Needs(), Needs(draws=True))


def fused(rows: int, needs: Needs, prompt_tokens: int = 0) -> bool:
    """Whether model and sampler are captured as one graph; all rows must sample."""
    return needs in _PLAIN and rows <= FUSED_ROWS and prompt_tokens <= FUSED_TOKENS


def captured_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes to capture: fine where a step is short, coarser above; ends in max_num_seqs."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_num_seqs, 32)]
    return sorted({size for size in sizes if size < max_num_seqs} | {max_num_seqs})


def context_bounds(max_model_len: int) -> list[int]:
    """Bounds of the context length; the last one covers max_model_len."""
    bounds = [min(_FIRST_CONTEXT_BOUND, max_model_len)]
    while bounds[-1] < max_model_len:
        bounds.append(min(bounds[-1] * 4, max_model_len))
    return bounds


class GraphSizes:
    """Maps steps to keys. prompt_tokens: the sizes that are captured, from `prompt_sizes`."""

    def __init__(self, max_num_seqs: int, max_model_len: int, prompt_tokens: Sequence[int]) -> None:
        self.decode_rows = captured_sizes(max_num_seqs)
        self.context_bounds = context_bounds(max_model_len)
        self._short_context = min(_SHORT_CONTEXT, max_model_len)
        self.prompt_tokens = list(prompt_tokens)
        self._powers = _powers(2, max_num_seqs)
        self._few_powers = _powers(4, max_num_seqs)
        self.most_sampled = min(2 * max_num_seqs, _MAX_SAMPLED)

    def common_keys(self) -> list[Key]:
        """What every deployment needs, the largest first."""
        bound = self.context_bounds[0]
        first = [tokens for tokens in FIRST_PROMPTS if tokens in self.prompt_tokens]
        prompts = [self.mixed(0, 1, tokens, bound) for tokens in reversed(first)]
        keys: list[Key] = []
        for key in prompts:
            assert key is not None
            whole = [needs for needs in _KINDS if fused(key.rows, needs, key.prefill_tokens)]
            contexts = (bound, self._short_context)
            for needs in (None, *whole):
                keys += dict.fromkeys(self.best(key, needs, context) for context in contexts)
        for rows in reversed(self.decode_rows):
            whole = [needs for needs in _KINDS if fused(rows, needs)]
            keys += [self.decode(rows, bound, needs) for needs in whole]
            keys.append(self.decode(rows, bound, None))
            keys += [SamplerKey(rows, needs) for needs in _KINDS if needs not in whole]
        return keys

    def first_keys(self) -> list[Key]:
        """Those that are captured before anything is served: the largest, into whose memory all
        others fit, and those of few tokens, which suffer most from launches; model and sampler by
        themselves, which are fewer."""
        bound = self.context_bounds[0]
        models = [
            key
            for key in self.common_keys()
            if isinstance(key, GraphKey) and not key.needs and key.context_bound == bound
        ]
        prompts = [key for key in models if key.prefill_tokens]  # the largest first
        few = [key for key in prompts[1:] if key.prefill_tokens <= FUSED_TOKENS]
        first: list[Key] = [*prompts[:1], *few]
        for key in models[len(prompts) :]:
            if key.rows in (*range(1, FUSED_ROWS + 1), self.decode_rows[-1]):
                first += [key, *(SamplerKey(key.rows, needs) for needs in _KINDS)]
        return first

    def burst_keys(self) -> list[Key]:
        """Steps of a burst of calls: some prompts beside the decode rows of earlier ones. They
        take about as long as their launches, and one shape seldom recurs within a burst."""
        bound, most = self.context_bounds[0], self.decode_rows[-1]
        keys = [
            self.mixed(min(decode, most - prompts), prompts, tokens, bound)
            for prompts, least, last in _BURST_PROMPTS
            for tokens in self.prompt_tokens
            if prompts <= most and least <= tokens <= last
            for decode in _BURST_ROWS
        ]
        models = [key for key in dict.fromkeys(keys) if key is not None]
        rows = dict.fromkeys(key.rows for key in models if key.rows <= self.most_sampled)
        samplers = [SamplerKey(count, needs, True) for count in rows for needs in _KINDS]
        return [*samplers, *models]

    def decode(self, rows: int, max_context_len: int, needs: Needs | None) -> GraphKey:
        """The key of a step of decode rows only."""
        return GraphKey(_cover(self.decode_rows, rows), 0, 0, self._bound(max_context_len), needs)

    def mixed(
        self, decode_rows: int, prefill_rows: int, tokens: int, max_context_len: int
    ) -> GraphKey | None:
        """The key of the model's part of a step with longer rows; None if it is too long to be
        worth a graph.

        It always has room for one more row, which takes the padding tokens.
        """
        if not self.prompt_tokens or tokens > self.prompt_tokens[-1]:
            return None
        many = tokens > _MANY_TOKENS
        powers = self._few_powers if many else self._powers
        longer = 1 << prefill_rows.bit_length()
        if many and longer.bit_length() % 2:
            longer *= 2  # of 2, 8, 32 and so on
        return GraphKey(
            _cover(powers, decode_rows) if decode_rows else 0,
            longer,
            _cover(self.prompt_tokens, tokens),
            self._bound(max_context_len),
        )

    def best(self, key: GraphKey, needs: Needs | None, max_context_len: int) -> GraphKey:
        """What does the work of a model's part soonest. needs: as one graph with its sampler."""
        decode, longer, tokens, bound, _ = key
        lone = not decode and longer == _LONE_ROWS
        if lone and max(tokens, max_context_len) <= self._short_context:
            bound = self._short_context
        return GraphKey(decode, longer, tokens, bound, needs)

    def sampler(self, key: GraphKey, needs: Needs, sampling_rows: int) -> SamplerKey | None:
        """The key of the sampler after a step with longer rows; None: it runs eagerly, because no
        row samples, or there are masks or biases, or too many rows to capture."""
        if not sampling_rows or needs.edits or key.rows > self.most_sampled:
            return None
        return SamplerKey(key.rows, needs, True)

    def _bound(self, max_context_len: int) -> int:
        return _cover(self.context_bounds, max_context_len)


def prompt_sizes(max_model_len: int, max_tokens: int) -> list[int]:
    """Numbers of prompt tokens that may be captured: the padding fits into one request, and all
    but the last are less than the most tokens of a step."""
    found = []
    for last, size in pairwise((0, *PROMPT_TOKENS)):
        if size - last > max_model_len or last >= max_tokens:
            break
        found.append(size)
    return found


def most_rows(max_num_seqs: int) -> int:
    """The most rows of a captured step: see GraphSizes.mixed."""
    return max_num_seqs + 4 * min(max_num_seqs, PROMPT_TOKENS[-1])


def fixed_bytes(max_num_seqs: int, prompt_tokens: Sequence[int]) -> int:
    """Size of what a captured step with prompts reads from its upload (see stage_mixed): at most 4
    bytes a token and 32 a row."""
    tokens = max_num_seqs + max(prompt_tokens, default=0)
    return max(1 << 16, 4 * tokens + 40 * most_rows(max_num_seqs))


def free_bytes(device: torch.device) -> int:
    """Free device memory once all enqueued work is done; 0 for a CPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    return torch.cuda.mem_get_info(device)[0]


def _powers(base: int, most: int) -> list[int]:
    """1, and powers of base below `most`, which ends them."""
    powers = [1]
    while powers[-1] * base < most:
        powers.append(powers[-1] * base)
    return sorted({*powers, most})


def _cover(sizes: list[int], wanted: int) -> int:
    return sizes[bisect_left(sizes, wanted)]


class _Captured(NamedTuple):
    """graphs: one for each part of the step, in order. done: its outputs."""

    graphs: tuple[torch.cuda.CUDAGraph, ...]
    done: Done


class StepGraphs:
    """The graphs captured so far: at most MAX_GRAPHS, the least recently used is evicted."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[Key | WriteKey, _Captured | None] = OrderedDict()
        self._begun: Key | None = None  # whose first part was the last to run
        self._pool = torch.cuda.graph_pool_handle()

    def __contains__(self, key: Key | WriteKey) -> bool:
        """Whether it was captured, or its capture failed."""
        return key in self._graphs

    def begin(self, key: Key) -> None:
        """Run the first part of a step that is captured in two. Its replay runs the rest, if it is
        the next replay of all."""
        captured = self._graphs.get(key)
        if captured is not None and len(captured.graphs) > 1:
            captured.graphs[0].replay()
            self._begun = key

    def replay(self, key: Key | WriteKey) -> Done | None:
        """Run a captured step; None if it is not captured and must run eagerly."""
        begun, self._begun = self._begun == key, None
        captured = self._graphs.get(key)
        if captured is None:
            return None
        self._graphs.move_to_end(key)
        for graph in captured.graphs[begun:]:
            graph.replay()
        return captured.done

    def capture(self, key: Key | WriteKey, *parts: Callable[[], Done], ran: bool = True) -> None:
        """Capture a step, whose kernels are compiled, without running it.

        parts: in order; `begin` may replay the first of two ahead of the second. ran: the step has
        run before. If it has not, a failure may only mean that a library needs its first call
        outside of a graph: nothing is kept, and the step can be captured after it has run.
        """
        if len(self._graphs) >= MAX_GRAPHS:
            self._graphs.popitem(last=False)
        try:
            graphs, done = zip(*[self._record(part) for part in parts], strict=True)
            self._graphs[key] = _Captured(graphs, done[-1])
        except Exception as error:
            # After a failed capture torch's pool is unusable; captured graphs keep the old one.
            self._pool = torch.cuda.graph_pool_handle()
            if not ran:
                return
            log.warning(
                "capturing the step of batch size %d failed, it runs eagerly: %s",
                key.rows,
                (str(error).splitlines() or [type(error).__name__])[0],
            )
            self._graphs[key] = None

    def _record(self, part: Callable[[], Done]) -> tuple[torch.cuda.CUDAGraph, Done]:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            return graph, part()
        finally:
            graph.capture_end()
