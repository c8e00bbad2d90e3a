"""The attention twins against dense attention written out: they are the oracle of the kernels."""

from typing import Any

import pytest
import torch

from quire.kernels import reference

BF16, FP32 = torch.bfloat16, torch.float32


def dense(cache: Any, row: int, q: torch.Tensor, first: int, scale: float) -> torch.Tensor:
    """Causal attention in fp64, token by token. q: [new, Hq, D], standing at `first` onward."""
    _, kv_heads, block_size, dim = cache.k_cache.shape
    group = q.shape[1] // kv_heads
    out = torch.empty(q.shape, dtype=torch.float64)
    for token in range(q.shape[0]):
        seen = first + token + 1
        cells = [
            (int(cache.block_tables[row, t // block_size]), t % block_size) for t in range(seen)
        ]
        for head in range(q.shape[1]):
            keys, values = (
                torch.stack([c[block, head // group, offset].double() for block, offset in cells])
                for c in (cache.k_cache, cache.v_cache)
            )
            weights = torch.softmax(keys @ q[token, head].double() * scale, dim=0)
            out[token, head] = weights @ values
    assert out.shape[-1] == dim
    return out


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu")


@pytest.mark.parametrize(("group", "dtype"), [(1, FP32), (3, FP32), (2, BF16)])
def test_decode_is_dense_attention(paged: Any, group: int, dtype: torch.dtype) -> None:
    contexts = [1, 15, 0, 16, 17, 40]
    cache = paged(contexts, kv_heads=2, block_size=16, dim=32, dtype=dtype, width=5)
    q = torch.randn(6, 2 * group, 32).to(dtype)
    out = reference.decode_attention(
        q, cache.k_cache, cache.v_cache, cache.block_tables, cache.context_lens, 0.2, 80
    )
    assert out.dtype == dtype
    assert not out[2].any()
    for row, context in enumerate(contexts):
        if context:
            wanted = dense(cache, row, q[row : row + 1], context - 1, 0.2)[0]
            near = 1e-2 if dtype == BF16 else 1e-5
            torch.testing.assert_close(out[row].double(), wanted, atol=near, rtol=near)


def test_prefill_is_dense_attention(paged: Any) -> None:
    rows = [(0, 17), (16, 1), (5, 0), (20, 13)]
    contexts = [cached + new for cached, new in rows]
    cache = paged(contexts, kv_heads=2, block_size=16, dim=16, dtype=FP32)
    starts = torch.tensor([0, 17, 18, 18, 31])
    q = torch.randn(31, 4, 16)
    out = reference.prefill_attention(
        q, cache.k_cache, cache.v_cache, cache.block_tables, starts, cache.context_lens, 0.3,
        17, 33,
    )  # fmt: skip
    for row, (cached, _) in enumerate(rows):
        mine = slice(int(starts[row]), int(starts[row + 1]))
        wanted = dense(cache, row, q[mine], cached, 0.3)
        torch.testing.assert_close(out[mine].double(), wanted, atol=1e-5, rtol=1e-5)


def test_a_decode_row_is_the_same_alone_batched_and_in_a_mixed_step(paged: Any) -> None:
    contexts = [33, 7, 128]
    cache = paged(contexts, kv_heads=2, block_size=16, dim=32, dtype=FP32)
    q = torch.randn(3, 4, 32)

    def decode(rows: slice) -> torch.Tensor:
        return reference.decode_attention(
            q[rows], cache.k_cache, cache.v_cache, cache.block_tables[rows],
            cache.context_lens[rows], 0.2, 128,
        )  # fmt: skip

    together = decode(slice(0, 3))
    mixed = reference.prefill_attention(
        q, cache.k_cache, cache.v_cache, cache.block_tables, torch.arange(4), cache.context_lens,
        0.2, 1, 128,
    )  # fmt: skip
    assert torch.equal(together, mixed)
    for row in range(3):
        assert torch.equal(decode(slice(row, row + 1))[0], together[row])
