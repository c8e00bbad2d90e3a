"""Attention of steps with rows of one token beside longer ones."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from quire.engine.model.layers.attention import attend
from quire.kernels.padding import library_rows, padded


class Ones:
    """Operations that fill what they are given."""

    def decode_attention(self, *_: Any, out: Tensor, **__: Any) -> None:
        out.fill_(1)

    def prefill_attention(self, *_: Any, out: Tensor, **__: Any) -> None:
        out.fill_(2)


def test_the_result_has_room_for_the_product_behind_it() -> None:
    """Exact mode multiplies padded rows where they lie; copies cost two launches a layer."""
    of_rows = torch.zeros(5)
    batch: Any = SimpleNamespace(
        num_decode_rows=4, num_rows=5, block_tables=of_rows, context_lens=of_rows,
        max_context_len=96, prefill_start_loc=of_rows, max_query_len=96,
    )  # fmt: skip
    q, cache, ops = torch.zeros(100, 2, 8), torch.zeros(1), Ones()
    out = attend(ops, q, cache, cache, batch, 1.0)  # type: ignore[arg-type]
    assert out[:, 0].tolist() == [1.0] * 4 + [2.0] * 96
    assert padded(out, library_rows(100)).data_ptr() == out.data_ptr()
