"""Attention of a sliding window: the twins against the definition, Triton against the twins.

Blocks before every window hold what is no number, and their columns name the null block: nothing of
them may reach a result.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from quire.kernels import reference

BF16, FP32 = torch.bfloat16, torch.float32
WINDOWS = (1, 7, 16, 64, 200)


def passed(cache: Any, contexts: list[int], firsts: list[int]) -> Tensor:
    """The tables once blocks before each row's first token were given back; those blocks are
    poisoned. The whole keys and values were taken before."""
    tables, size = cache.block_tables.clone(), cache.k_cache.shape[2]
    for row, first in enumerate(firsts):
        for column in range(first // size):
            for one in (cache.k_cache, cache.v_cache):
                one[int(tables[row, column])] = float("nan")
            tables[row, column] = 0
    del contexts
    return tables


def gathered(cache: Any, row: int, context: int) -> tuple[Tensor, Tensor]:
    """A row's keys and values, fp32: [Hkv, context, D] each."""
    blocks = cache.block_tables[row].long()
    found = []
    for one in (cache.k_cache, cache.v_cache):
        flat = one[blocks].transpose(0, 1).flatten(1, 2)
        found.append(flat[:, :context].float())
    return found[0], found[1]


def defined(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> Tensor:
    """Each query's softmax over the tokens that it sees, one by one. q: [new, Hq, D]."""
    new, context, group = q.shape[0], k.shape[1], q.shape[1] // k.shape[0]
    rows = []
    for at in range(new):
        last = context - new + at
        seen = slice(max(last - window + 1, 0), last + 1)
        heads = q[at].float().view(k.shape[0], group, -1)
        weights = torch.softmax(heads @ k[:, seen].transpose(1, 2) * scale, dim=-1)
        rows.append((weights @ v[:, seen]).flatten(0, 1))
    return torch.stack(rows)


def check_decode(paged: Any, attend: Any, contexts: list[int], window: int, **shape: Any) -> None:
    dim, dtype, group = shape["dim"], shape["dtype"], shape.pop("group")
    launch = shape.pop("launch", {})
    cache = paged(contexts, **shape)
    heads = group * shape["kv_heads"]
    q = torch.randn(len(contexts), heads, dim, generator=torch.Generator().manual_seed(3))
    q = q.to(cache.k_cache.device, dtype)
    wholes = [gathered(cache, row, n) for row, n in enumerate(contexts)]
    expected = torch.cat(
        [defined(q[i : i + 1], *kv, dim**-0.5, window) for i, kv in enumerate(wholes)]
    )
    tables = passed(cache, contexts, [max(n - window, 0) for n in contexts])
    rest = (tables, cache.context_lens, dim**-0.5, max(contexts))
    out = attend(q, cache.k_cache, cache.v_cache, *rest, window=window, **launch)
    tolerance = 2e-5 if dtype == FP32 else 2e-2
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)


def check_prefill(
    paged: Any, attend: Any, rows: list[tuple[int, int]], window: int, **shape: Any
) -> None:
    """rows: (cached, new) tokens of each."""
    dim, dtype, group = shape["dim"], shape["dtype"], shape.pop("group")
    contexts, news = [sum(row) for row in rows], [new for _, new in rows]
    cache = paged(contexts, **shape)
    heads = group * shape["kv_heads"]
    q = torch.randn(sum(news), heads, dim, generator=torch.Generator().manual_seed(4))
    q = q.to(cache.k_cache.device, dtype)
    parts = q.split(news)
    expected = torch.cat(
        [
            defined(part, *gathered(cache, row, contexts[row]), dim**-0.5, window)
            for row, part in enumerate(parts)
        ]
    )
    tables = passed(cache, contexts, [max(cached + 1 - window, 0) for cached, _ in rows])
    starts = torch.tensor([0, *news]).cumsum(0).int().to(q.device)
    rest = (tables, starts, cache.context_lens, dim**-0.5, max(news), max(contexts))
    out = attend(q, cache.k_cache, cache.v_cache, *rest, window=window)
    tolerance = 2e-5 if dtype == FP32 else 2e-2
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)


CONTEXTS = [1, 15, 16, 17, 63, 64, 65, 200, 300]
ROWS = [(0, 1), (0, 40), (100, 1), (64, 33), (15, 2), (130, 70)]


@pytest.mark.parametrize("window", WINDOWS)
def test_the_twins_see_a_window(paged: Any, window: int) -> None:
    shape = {"kv_heads": 2, "block_size": 16, "dim": 16, "dtype": FP32}
    check_decode(paged, reference.decode_attention, CONTEXTS, window, group=2, **shape)
    check_prefill(paged, reference.prefill_attention, ROWS, window, group=2, **shape)


SHAPES = [(100, 16, FP32, 16), (16, 64, BF16, 64)]


@pytest.mark.triton
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize(("window", "block_size", "dtype", "dim"), SHAPES)
def test_decode(
    paged: Any, level: int, window: int, block_size: int, dtype: torch.dtype, dim: int
) -> None:
    from quire.kernels.attention.decode import decode_attention

    shape: dict[str, Any] = {"kv_heads": 1, "block_size": block_size, "dim": dim, "dtype": dtype}
    contexts = [1, 17, 65, 300]
    launch = {"level": level}
    check_decode(paged, decode_attention, contexts, window, group=2, launch=launch, **shape)


@pytest.mark.triton
@pytest.mark.parametrize(("window", "block_size", "dtype", "dim"), [(1, 16, FP32, 16), *SHAPES])
def test_prefill(paged: Any, window: int, block_size: int, dtype: torch.dtype, dim: int) -> None:
    from quire.kernels.attention.prefill import prefill_attention

    shape: dict[str, Any] = {"kv_heads": 1, "block_size": block_size, "dim": dim, "dtype": dtype}
    check_prefill(paged, prefill_attention, ROWS, window, group=2, **shape)


@pytest.mark.triton
def test_long_splits_begin_behind_what_is_not_seen(paged: Any) -> None:
    """A window over the border of two long splits, and one that has whole units behind it."""
    from quire.kernels.attention.decode import decode_attention

    shape: dict[str, Any] = {"kv_heads": 1, "block_size": 256, "dim": 16, "dtype": FP32}
    for window in (300, 1000):
        launch = {"level": 2}
        check_decode(paged, decode_attention, [2100], window, group=1, launch=launch, **shape)
