"""A step of prefill attention as the benchmarks time it, and its check against plain PyTorch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from common import chain_us
from paging import HEAD_DIM, KV_HEADS, SCALE, Pool, Rows, relative_error
from torch import Tensor

from quire.kernels import reference
from quire.kernels.attention.prefill import prefill_attention

GROUP = 2
TOKENS = 16_384  # a step of one length
ERROR = 1e-2
MODEL = f"{GROUP * KV_HEADS}/{KV_HEADS} heads of {HEAD_DIM}"


def flops(news: Sequence[int], contexts: Sequence[int]) -> float:
    """Of causal attention: each new token against what it sees."""
    pairs = sum(n * (c - n) + n * (n + 1) / 2 for n, c in zip(news, contexts, strict=True))
    return 4 * GROUP * KV_HEADS * HEAD_DIM * pairs


class Step:
    """Rows of new tokens over cached prefixes, and the call that attends them.

    bound: of the contexts, where the call is not told the longest, as in a captured step.
    """

    def __init__(
        self,
        pool: Pool,
        news: Sequence[int],
        cached: Sequence[int],
        block: int,
        *,
        group: int = GROUP,
        bound: int = 0,
    ) -> None:
        self.bound = bound
        self.news = list(news)
        self.contexts = [n + c for n, c in zip(news, cached, strict=True)]
        self.rows = Rows.build(pool, self.contexts, block)
        self.starts = torch.tensor([0, *news]).cumsum(0).int().cuda()
        shape = (sum(news), group * KV_HEADS, HEAD_DIM)
        self.q = torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_()

    def call(self, layer: int = 0, **launch: Any) -> Callable[[], Tensor]:
        k, v = self.rows.layers[layer]
        return partial(
            prefill_attention, self.q, k, v, self.rows.block_tables, self.starts,
            self.rows.context_lens, SCALE, max(self.news),
            max(self.bound, *self.contexts), **launch,
        )  # fmt: skip

    def check(self, **launch: Any) -> None:
        """Raises where the kernel is wrong; the first row and the last, on their last 64 tokens."""
        found = self.call(**launch)()
        k, v = self.rows.layers[0]
        end = 0
        for row, new in enumerate(self.news):
            end += new
            if row not in (0, len(self.news) - 1):
                continue
            last = min(64, new)
            wanted = reference.prefill_attention(
                self.q[end - last : end], k, v, self.rows.block_tables[row : row + 1],
                torch.tensor([0, last]), self.rows.context_lens[row : row + 1], SCALE, last,
                self.contexts[row],
            )  # fmt: skip
            error = relative_error(found[end - last : end], wanted)
            if error > ERROR:
                raise AssertionError(f"prefill_attention is wrong: error {error} with {launch}")
        if not torch.isfinite(found).all():
            raise AssertionError(f"prefill_attention is not finite with {launch}")

    def times(self, runs: int, **launch: Any) -> list[float]:
        layers = min(8, len(self.rows.layers))
        return chain_us([self.call(layer, **launch) for layer in range(layers)], runs)

    @property
    def flops(self) -> float:
        return flops(self.news, self.contexts) * self.q.shape[1] / (GROUP * KV_HEADS)
