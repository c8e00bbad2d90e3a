"""Which kernels a step's attention takes, and that it gives the same whichever they are."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from quire.engine.model.forward_batch import ForwardBatch
from quire.engine.model.layers.attention import paged_attention
from quire.kernels import reference
from quire.kernels.ops import Ops

HEADS, KV_HEADS, DIM, BLOCK = 4, 2, 16, 16
CACHED = (20, 3, 33, 15)  # tokens of each row that are in the cache


class Recorder:
    """The twins, with the names of those called."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.results: list[Tensor] = []
        self.options: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Tensor:
            self.called.append(name)
            self.options.append(options)
            self.results.append(getattr(reference, name)(*arguments, **options))
            return self.results[-1]

        return call


def step(lens: tuple[int, ...]) -> tuple[ForwardBatch, Tensor]:
    """Rows of these many new tokens, those of one token first, and their qkv."""
    tables = torch.arange(1, 1 + 4 * len(lens), dtype=torch.int32).view(len(lens), 4)
    rows = [(row, CACHED[row] + i) for row, count in enumerate(lens) for i in range(count)]
    positions = torch.tensor([position for _, position in rows], dtype=torch.int32)
    slots = [
        int(tables[row, position // BLOCK]) * BLOCK + position % BLOCK for row, position in rows
    ]
    decode = sum(count == 1 for count in lens)
    starts = torch.tensor([0, *lens[decode:]]).cumsum(0).int()
    batch = ForwardBatch(
        token_ids=torch.zeros_like(positions),
        positions=positions,
        slot_mapping=torch.tensor(slots),
        context_lens=torch.tensor([CACHED[row] + n for row, n in enumerate(lens)]).int(),
        block_tables=tables,
        prefill_start_loc=starts if decode < len(lens) else None,
        logits_rows=None,
        num_decode_rows=decode,
        max_query_len=max(lens),
        max_context_len=4 * BLOCK,
    )
    shape = (HEADS + 2 * KV_HEADS) * DIM
    return batch, torch.randn(len(rows), shape, generator=torch.Generator().manual_seed(0))


def run(lens: tuple[int, ...], *, narrow: bool = False) -> tuple[Tensor, Recorder]:
    """The attention of a step over a cache that is the same each time, and what it called."""
    batch, qkv = step(lens)
    rng = torch.Generator().manual_seed(1)
    k, v = (torch.randn(20, KV_HEADS, BLOCK, DIM, generator=rng) for _ in range(2))
    norm = torch.ones(DIM)
    angle = torch.arange(64)[:, None] * 1e4 ** (-torch.arange(0, DIM, 2) / DIM)
    rope = torch.cat((angle.cos(), angle.sin()), dim=1)
    ops = Recorder()
    out = paged_attention(
        cast(Ops, ops), qkv, norm, norm, 1e-6, rope, k, v, batch, 0.25, narrow=narrow
    )
    assert isinstance(out, Tensor)
    assert out.shape == (len(qkv), HEADS * DIM)
    return out, ops


@pytest.mark.parametrize(
    ("lens", "kernels"),
    [
        ((1, 1, 1), ["rope_decode_attention"]),
        ((5, 2), ["qk_norm_rope_kv_write", "prefill_attention"]),
        ((1, 1, 4), ["qk_norm_rope_kv_write", "rope_decode_attention", "prefill_attention"]),
    ],
)
def test_a_decode_step_is_one_kernel(lens: tuple[int, ...], kernels: list[str]) -> None:
    assert run(lens)[1].called == kernels


def test_a_decode_row_is_the_same_in_a_decode_step_and_in_a_mixed_one() -> None:
    alone, _ = run((1, 1))
    mixed, _ = run((1, 1, 3))
    torch.testing.assert_close(mixed[:2], alone)


def test_both_kernels_of_a_mixed_step_write_into_its_result() -> None:
    """Nothing is joined afterwards: that would be a copy a layer."""
    out, ops = run((1, 1, 4))
    decode, prefill = ops.results[1:]
    assert (decode.shape[0], prefill.shape[0]) == (2, 4)
    assert decode.data_ptr() == out.data_ptr()
    assert prefill.data_ptr() == out[2:].data_ptr()


def test_what_is_written_beside_prompts_is_not_narrow() -> None:
    """They share a result, which prompts write as it is."""
    assert run((1, 1), narrow=True)[1].options[0]["narrow"]
    assert "narrow" not in run((1, 1, 4), narrow=True)[1].options[1]
