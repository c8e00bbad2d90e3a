"""Exact mode: a query's attention has the same bits however it comes to be computed."""

import math
from typing import Any

import pytest
import torch

BF16, FP16 = torch.bfloat16, torch.float16

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("ordered_dots")]


def queries(tokens: int, heads: int, dim: int, like: torch.Tensor, seed: int = 5) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, heads, dim, generator=rng).to(like.device, like.dtype)


def decoded(cache: Any, q: torch.Tensor, contexts: range, **launch: Any) -> torch.Tensor:
    """Each query of the first row by decode, alone with the context that it sees."""
    from quire.kernels.attention.decode import decode_attention

    rows = len(contexts)
    tables = cache.block_tables[:1].expand(rows, -1).contiguous()
    lens = torch.tensor(list(contexts), dtype=torch.int32, device=q.device)
    scale = q.shape[-1] ** -0.5
    return decode_attention(
        q, cache.k_cache, cache.v_cache, tables, lens, scale, contexts[-1], exact=True,
        out=unrounded(q), **launch,
    )  # fmt: skip


def unrounded(q: torch.Tensor) -> torch.Tensor:
    """Room for what kernels give: in fp32, so that no rounding hides another order of sums."""
    return torch.empty(q.shape, dtype=torch.float32, device=q.device)


def prefilled(cache: Any, q: torch.Tensor, contexts: range, **launch: Any) -> torch.Tensor:
    """The same queries as one chunk."""
    from quire.kernels.attention.exact_prefill import prefill_attention

    starts = torch.tensor([0, len(contexts)], dtype=torch.int32, device=q.device)
    lens = torch.tensor([contexts[-1]], dtype=torch.int32, device=q.device)
    scale = q.shape[-1] ** -0.5
    return prefill_attention(
        q, cache.k_cache, cache.v_cache, cache.block_tables, starts, lens, scale,
        len(contexts), contexts[-1], out=unrounded(q), **launch,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dim", "group", "block_size", "dtype", "first", "last"),
    [
        (64, 2, 64, BF16, 1, 17),
        (64, 1, 16, BF16, 254, 259),
        (128, 2, 64, FP16, 511, 514),
        (96, 3, 32, BF16, 62, 67),
        (16, 16, 16, BF16, 1, 3),
        (64, 2, 64, BF16, 120, 129),  # a tile that the diagonal cuts, by descriptors
    ],
)
def test_prefill_gives_the_bits_of_decode(
    paged: Any, dim: int, group: int, block_size: int, dtype: torch.dtype, first: int, last: int
) -> None:
    contexts = range(first, last + 1)
    cache = paged([last], kv_heads=1, block_size=block_size, dim=dim, dtype=dtype)
    q = queries(len(contexts), group, dim, cache.k_cache)
    wanted = decoded(cache, q, contexts, level=0)
    for level in (1, 2):
        assert torch.equal(decoded(cache, q, contexts, level=level), wanted)
    for split in (False, True):
        assert torch.equal(prefilled(cache, q, contexts, split=split), wanted)


@pytest.mark.parametrize(("first", "last"), [(60, 66), (254, 259), (1022, 1026)])
def test_units_have_the_same_bits_if_one_program_takes_several(
    paged: Any, monkeypatch: Any, first: int, last: int
) -> None:
    """Which of them a program takes hangs on the number of rows: each is left for itself."""
    from quire.kernels.attention import decode_launch

    contexts, dim = range(first, last + 1), 16
    cache = paged([last], kv_heads=1, block_size=64, dim=dim, dtype=BF16)
    q = queries(len(contexts), 2, dim, cache.k_cache)
    wanted = decoded(cache, q, contexts, level=0)
    for most in (0, 128, 256):
        monkeypatch.setattr(decode_launch, "most_in_tiles", lambda *_, found=most: found)
        assert torch.equal(decoded(cache, q, contexts, level=0), wanted)


def test_chunks_give_the_bits_of_the_whole(paged: Any) -> None:
    contexts, dim = range(246, 271), 16
    cache = paged([270], kv_heads=1, block_size=16, dim=dim, dtype=BF16)
    q = queries(len(contexts), 2, dim, cache.k_cache)
    whole = prefilled(cache, q, contexts, split=False)
    for begin, end in ((0, 1), (1, 18), (18, 25), (3, 25)):
        for split in (False, True):
            part = prefilled(cache, q[begin:end], contexts[begin:end], split=split)
            assert torch.equal(part, whole[begin:end])


def test_rows_beside_it_change_no_bit_of_a_row(paged: Any) -> None:
    """Rows of a few tokens and of many, and the same with each alone."""
    from quire.kernels.attention.exact_prefill import prefill_attention

    lens, contexts, dim = [2, 18, 1, 9], [270, 75, 70, 9], 16
    cache = paged(contexts, kv_heads=1, block_size=16, dim=dim, dtype=BF16)
    q = queries(sum(lens), 2, dim, cache.k_cache)
    ends = torch.tensor([0, *lens]).cumsum(0).int().to(q.device)
    rest = (dim**-0.5, max(lens), max(contexts))
    together = prefill_attention(
        q, cache.k_cache, cache.v_cache, cache.block_tables, ends, cache.context_lens, *rest,
        split=False, out=unrounded(q),
    )  # fmt: skip
    for row in range(len(lens)):
        begin, end = int(ends[row]), int(ends[row + 1])
        alone = prefill_attention(
            q[begin:end], cache.k_cache, cache.v_cache, cache.block_tables[row : row + 1],
            ends[:2] * 0 + torch.tensor([0, lens[row]], device=q.device).int(),
            cache.context_lens[row : row + 1], *rest, split=row == 0,
            out=unrounded(q[begin:end]),
        )  # fmt: skip
        assert torch.equal(alone, together[begin:end])


@pytest.mark.parametrize("edge", [32, 128])
def test_contexts_whose_units_differ_within_a_tile(paged: Any, monkeypatch: Any, edge: int) -> None:
    """Up to MAX_SPLITS / 2 tiles a unit is a tile, and beyond UNIT * MAX_SPLITS tokens units grow
    with the context: here at 32 and 128."""
    from quire.kernels.attention import decode_launch, exact_prefill

    for module in (decode_launch, exact_prefill):
        monkeypatch.setattr(module, "UNIT", 32)
        monkeypatch.setattr(module, "MAX_SPLITS", 4)
    monkeypatch.setattr(decode_launch, "tile_tokens", lambda *_: 16)
    monkeypatch.setattr(exact_prefill, "tile_tokens", lambda *_: 16)
    contexts, dim = range(edge - 1, edge + 3), 16
    cache = paged([edge + 2], kv_heads=1, block_size=16, dim=dim, dtype=BF16)
    q = queries(len(contexts), 1, dim, cache.k_cache)
    wanted = decoded(cache, q, contexts, level=2)
    assert torch.equal(decoded(cache, q, contexts, level=0), wanted)
    for split in (False, True):
        assert torch.equal(prefilled(cache, q, contexts, split=split), wanted)


def test_no_bit_depends_on_the_maximum_that_weights_are_taken_from(device: torch.device) -> None:
    """Where one program's maximum grows along a context, another begins anew."""
    from support.tile_sums import tile_sums

    rng = torch.Generator().manual_seed(2)
    s = (torch.randn(16, 128, generator=rng) * 20).to(device)
    v = torch.randn(128, 16, generator=rng).to(device, BF16)
    wanted = tile_sums(s, v, -float("inf"), 64)
    expected = (s.double() * math.log(2)).softmax(1) @ v.double()
    assert torch.allclose(wanted.double(), expected, atol=2e-2)
    for least in (1536.0 + 61.0, 1536.0 + 93.0):
        assert torch.equal(tile_sums(s, v, least, 64), wanted)


def test_a_window_is_refused(paged: Any) -> None:
    cache = paged([40], kv_heads=1, block_size=16, dim=16, dtype=BF16)
    q = queries(2, 2, 16, cache.k_cache)
    for attend in (decoded, prefilled):
        with pytest.raises(ValueError, match="window 8: attention within a window has no exact"):
            attend(cache, q, range(39, 41), window=8)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dim", "group", "first", "last", "size"),
    [
        (128, 2, 1, 700, 1.0),
        (64, 4, 2000, 2150, 1.0),
        (128, 2, 8150, 8250, 1.0),
        (128, 2, 900, 1100, 8.0),
    ],
)
def test_gpu_the_kernel_of_sm_90_has_the_bits_of_decode(
    paged: Any, monkeypatch: Any, dim: int, group: int, first: int, last: int, size: float
) -> None:
    """Whole prompts and chunks, around changes of units, NaN behind the contexts."""
    from quire.kernels.attention import exact_prefill

    for_hopper, taken = exact_prefill._for_hopper, []

    def noted(*launch: Any) -> bool:
        taken.append(for_hopper(*launch))
        return taken[-1]

    monkeypatch.setattr(exact_prefill, "_for_hopper", noted)
    contexts = range(first, last + 1)
    cache = paged([last], kv_heads=2, block_size=64, dim=dim, dtype=BF16)
    q = queries(len(contexts), 2 * group, dim, cache.k_cache) * size
    wanted = decoded(cache, q, contexts, level=0)
    assert torch.equal(decoded(cache, q, contexts, level=2), wanted)
    assert torch.equal(decoded(cache, q[-1:], contexts[-1:]), wanted[-1:])  # as one row is launched
    for begin, end in ((0, len(contexts)), (7, 60), (0, 1)):
        for _ in range(3):
            part = prefilled(cache, q[begin:end], contexts[begin:end], split=False)
            assert torch.equal(part, wanted[begin:end])
    if not any(taken):
        pytest.skip("another card, or another Triton, than hopper_exact.py is for")


@pytest.mark.gpu
@pytest.mark.parametrize(("dim", "dtype"), [(128, BF16), (64, FP16)])
def test_a_cache_of_e4m3_keeps_the_bits(paged: Any, dim: int, dtype: torch.dtype) -> None:
    """Where a compiler sees that keys came as bytes, low tiles of queries take them in another
    order than high ones."""
    contexts = range(1, 300)
    cache = paged([299], kv_heads=1, block_size=64, dim=dim, dtype=torch.float8_e4m3fn)
    q = queries(len(contexts), 2, dim, cache.k_cache.to(dtype))
    wanted = decoded(cache, q, contexts, level=2)
    for split in (False, True):
        assert torch.equal(prefilled(cache, q, contexts, split=split), wanted)
        assert torch.equal(prefilled(cache, q[:4], contexts[:4], split=split), wanted[:4])
