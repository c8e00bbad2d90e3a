"""A cache of e4m3: what it holds, and attention over it.

Every e4m3 number is one of the queries' dtype too. So attention over such a cache has the bits of
attention over the same numbers in the queries' dtype: that is the oracle, beside the twin. Decode
attention of bfloat16, which is computed in fp16, is nearer to the twin than that.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from quire.kernels import reference
from quire.kernels.reference.kv_format import held

BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
NEAR = {BF16: 2e-2, FP16: 2e-3, FP32: 2e-5}


def test_a_number_becomes_the_nearest_one_and_what_is_none_stays_none() -> None:
    """All numbers of bf16, against a table of all of e4m3: no conversion is trusted."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    x = bits.view(BF16)
    table = torch.arange(127, dtype=torch.uint8).view(FP8).double()  # 0 to 448, in order
    size = x.double().abs().nan_to_num(posinf=0.0)
    above = torch.searchsorted(table, size).clamp(max=126)
    below = (above - 1).clamp(min=0)
    up, down = (table[above] - size).abs(), (size - table[below]).abs()
    take_up = (up < down) | ((up == down) & (above % 2 == 0))  # of two as near the even one
    wanted = torch.where(take_up, table[above], table[below]) * x.double().sign()
    got = held(x, FP8).double()
    finite = x.isfinite()
    assert torch.equal(got[finite], wanted[finite])
    assert got[~finite].isnan().all()
    assert got[finite].abs().max() == 448


def test_the_twins_write_and_copy_what_such_a_cache_holds() -> None:
    qkv = torch.tensor([[1.0, 2.0, 0.3, 1000.0, torch.inf, -460.0]]).repeat(1, 16)[:, :64]
    caches = [torch.zeros(3, 1, 16, 16, dtype=FP8) for _ in range(2)]
    reference.kv_write(qkv.clone(), torch.zeros(64), torch.tensor([17]), *caches)
    for part, cache in enumerate(caches, 2):
        expected = held(qkv[0, 16 * part : 16 * part + 16], FP8)
        assert same(cache[1, 0, 1], expected)
        assert not cache[2].float().any()
    stacked = [cache[None] for cache in caches]
    reference.copy_blocks(*stacked, torch.tensor([1]), torch.tensor([2]))
    assert all(same(cache[2], cache[1]) for cache in caches)


def same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, where a NaN is as good as another."""
    torch.testing.assert_close(one.float(), other.float(), rtol=0, atol=0, equal_nan=True)
    return True


def test_the_twins_read_it_as_numbers(paged: Any) -> None:
    cache, wide = both(paged, [1, 16, 17, 40], FP32, kv_heads=2, block_size=16, dim=16)
    q = torch.randn(4, 4, 16, generator=torch.Generator().manual_seed(1)).to(wide[0].device)
    rest = (cache.block_tables, cache.context_lens, 0.3, 40)
    got = reference.decode_attention(q, cache.k_cache, cache.v_cache, *rest)
    assert torch.equal(got, reference.decode_attention(q, *wide, *rest))


def both(paged: Any, contexts: list[int], dtype: torch.dtype, **shape: Any) -> tuple[Any, Any]:
    """A cache of e4m3, and the same keys and values in another dtype."""
    cache = paged(contexts, dtype=FP8, **shape)
    return cache, (cache.k_cache.to(dtype), cache.v_cache.to(dtype))


def queries(tokens: int, heads: int, dim: int, dtype: torch.dtype, device: Any) -> Tensor:
    rng = torch.Generator().manual_seed(tokens)
    return torch.randn(tokens, heads, dim, generator=rng).to(device, dtype)


@pytest.mark.triton
@pytest.mark.parametrize(
    ("dim", "group", "block_size", "dtype", "level", "exact"),
    [
        pytest.param(64, 2, 64, BF16, 0, False, marks=pytest.mark.long),
        pytest.param(96, 3, 16, BF16, 1, False, marks=pytest.mark.long),
        (32, 2, 64, BF16, 2, False),
        (16, 2, 16, FP16, 1, False),
        pytest.param(16, 1, 16, FP32, 2, False, marks=pytest.mark.long),
        (16, 9, 16, BF16, 2, False),
        (32, 2, 64, BF16, 2, True),
    ],
)
def test_decode_has_the_bits_of_the_same_numbers(
    paged: Any,
    dim: int,
    group: int,
    block_size: int,
    dtype: torch.dtype,
    level: int,
    exact: bool,
) -> None:
    from quire.kernels.attention.decode import decode_attention

    contexts = [1, 0, 16, 65, 260]
    shape = {"kv_heads": 1, "block_size": block_size, "dim": dim}
    cache, wide = both(paged, contexts, dtype, **shape)
    q = queries(len(contexts), group, dim, dtype, wide[0].device)
    rest = (cache.block_tables, cache.context_lens, dim**-0.5, max(contexts))
    how: dict[str, Any] = {"level": level, "exact": exact, "tma": False}
    got = decode_attention(q, cache.k_cache, cache.v_cache, *rest, **how)
    assert got.isfinite().all()
    twin = reference.decode_attention(q.float(), cache.k_cache, cache.v_cache, *rest)
    if dtype == BF16 and not exact:  # but for the rounding of the result, to 8 bits
        torch.testing.assert_close(got.float(), twin, atol=5e-4, rtol=2.0**-8)
    else:
        assert same(got, decode_attention(q, *wide, *rest, **how))
        torch.testing.assert_close(got.float(), twin, atol=NEAR[dtype], rtol=NEAR[dtype])


@pytest.mark.triton
@pytest.mark.parametrize("ahead", [False, pytest.param(True, marks=pytest.mark.long)])
def test_no_query_is_too_large_or_too_small_for_fp16(paged: Any, ahead: bool) -> None:
    """By a power of two, which the scale takes back, nothing changes; of each head another."""
    from quire.kernels.attention.decode import decode_attention

    cache = paged([70], kv_heads=1, block_size=64, dim=16, dtype=FP8)
    q = queries(1, 2, 16, BF16, cache.k_cache.device)
    q[:, 1] *= 2.0**-9
    rest = (cache.k_cache, cache.v_cache, cache.block_tables, cache.context_lens)

    def attend(q: Tensor, scale: float) -> Tensor:
        return decode_attention(q, *rest, scale, 70, level=2, ahead=ahead)

    plain, twin = attend(q, 0.25), reference.decode_attention(q.float(), *rest, 0.25, 70)
    torch.testing.assert_close(plain.float(), twin, atol=5e-4, rtol=2.0**-8)
    for power in (-100, -20, 20, 100):
        assert same(attend(q * 2.0**power, 0.25 * 2.0**-power), plain)
    assert attend(torch.zeros_like(q), 0.25).isfinite().all()


@pytest.mark.triton
def test_what_lies_before_a_window_may_be_no_number(paged: Any) -> None:
    from quire.kernels.attention.decode import decode_attention

    cache = paged([70, 5], kv_heads=1, block_size=64, dim=16, dtype=FP8)
    cache.v_cache[cache.block_tables[0, 0], :, :37] = torch.nan
    q = queries(2, 2, 16, BF16, cache.k_cache.device)
    rest = (cache.k_cache, cache.v_cache, cache.block_tables, cache.context_lens, 0.25, 70)
    got = decode_attention(q, *rest, level=2, window=33)
    twin = reference.decode_attention(q.float(), *rest, window=33)
    torch.testing.assert_close(got.float(), twin, atol=5e-4, rtol=2.0**-8)


def test_heads_are_columns_in_many_rows_alone() -> None:
    """By one warp, but of a few more programs than run at once; what decides is in the name."""
    pytest.importorskip("triton")
    from quire.kernels.attention import decode_launch
    from quire.kernels.attention.decode_launch import Heads, choose, kernels

    if not decode_launch._EIGHT:
        pytest.skip("heads are columns from Triton 3.6 on")
    heads, wide = (Heads(32, 8, 128, BF16, 64, narrow) for narrow in (True, False))
    shapes = {rows: choose(rows, heads, 4096) for rows in (95, 96, 160, 256)}
    assert [shape.columns for shape in shapes.values()] == [False, True, True, True]
    assert [shape.warps for shape in shapes.values()] == [2, 1, 2, 1]
    assert not choose(256, wide, 4096).columns
    assert not choose(256, Heads(72, 8, 128, BF16, 64, True), 4096).columns
    assert not choose(256, heads, 4096, exact=True).columns
    of_64 = Heads(32, 8, 64, BF16, 64, narrow=True)  # which had other numbers on a card
    assert not choose(256, of_64, 4096).columns
    card = {"hopper": True, "shared": 232_448}
    alone, beside = (
        [kernels(rows, heads, 4096, alone=alone, **card) for rows in shapes]  # type: ignore[arg-type]
        for alone in (True, False)
    )
    assert len({*map(frozenset, alone)}) == 4  # rows below 128 are chained
    assert [a == b for a, b in zip(alone, beside, strict=True)] == [True, False, False, False]


ROWS = [(0, 1), (64, 33), (15, 2), (90, 1)]  # cached, new


@pytest.mark.triton
@pytest.mark.parametrize(
    ("dim", "block_size", "dtype", "how"),
    [
        (32, 64, BF16, {"split": 0}),
        (16, 16, FP16, {"split": 64}),
        (16, 32, BF16, {"window": 33}),
        pytest.param(96, 32, BF16, {"window": 33}, marks=pytest.mark.long),
        pytest.param(16, 16, FP32, {"split": 0}, marks=pytest.mark.long),
        (16, 128, BF16, {"exact": True, "split": True}),
        pytest.param(64, 16, BF16, {"exact": True, "split": False}, marks=pytest.mark.long),
    ],
)
def test_prefill_has_the_bits_of_the_same_numbers(
    paged: Any, dim: int, block_size: int, dtype: torch.dtype, how: dict[str, Any]
) -> None:
    from quire.kernels.attention import exact_prefill, prefill

    how = dict(how)
    attend = (exact_prefill if how.pop("exact", False) else prefill).prefill_attention
    contexts, news = [sum(row) for row in ROWS], [new for _, new in ROWS]
    cache, wide = both(paged, contexts, dtype, kv_heads=1, block_size=block_size, dim=dim)
    q = queries(sum(news), 2, dim, dtype, wide[0].device)
    starts = torch.tensor([0, *news]).cumsum(0).int().to(q.device)
    rest = (cache.block_tables, starts, cache.context_lens, dim**-0.5, max(news), max(contexts))
    got = attend(q, cache.k_cache, cache.v_cache, *rest, **how)
    assert same(got, attend(q, *wide, *rest, **how))
    assert got.isfinite().all()
    window = how.get("window", 0)
    twin = reference.prefill_attention(q, cache.k_cache, cache.v_cache, *rest, window=window)
    torch.testing.assert_close(got, twin, atol=NEAR[dtype], rtol=NEAR[dtype])


def write_arguments(
    tokens: int, dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Any, ...]:
    """Of 2 query heads and 1 of keys: values up to 3000, keys that are normed to about 400."""
    rng = torch.Generator().manual_seed(dim)
    qkv = torch.randn(tokens, 4 * dim, generator=rng)
    qkv[:, 3 * dim :] *= 1000
    qkv[0, 3 * dim], qkv[0, 3 * dim + 1], qkv[0, 3 * dim + 2] = torch.inf, torch.nan, -torch.inf
    norms = [torch.full((dim,), size).to(device, dtype) for size in (1.0, 400.0)]
    angle = torch.arange(tokens)[:, None] * 1e4 ** (-torch.arange(0, dim, 2) / dim)
    table = torch.cat((angle.cos(), angle.sin()), dim=1).float().to(device)
    positions = torch.arange(tokens, device=device)
    return qkv.to(device, dtype), *norms, 1e-6, table, positions, positions + 16


def check_written(got: list[Tensor], twin: list[Tensor]) -> None:
    """Values in bits; keys by a step of e4m3, as norms and angles end in other bits."""
    assert same(got[1], twin[1])
    assert got[1].float().abs().nan_to_num().max() == 448
    torch.testing.assert_close(got[0].float(), twin[0].float(), rtol=2.0**-3, atol=2.0**-9)
    assert got[0].float().abs().max() == 448


@pytest.mark.triton
@pytest.mark.parametrize(
    ("dim", "dtype"), [(16, FP32), (64, BF16), pytest.param(96, FP16, marks=pytest.mark.long)]
)
def test_what_is_written_is_rounded_as_the_twin_rounds(
    dim: int, dtype: torch.dtype, device: torch.device
) -> None:
    from quire.kernels.attention.kv_write import kv_write
    from quire.kernels.attention.qk_norm_rope import qk_norm_rope_kv_write

    given = write_arguments(9, dim, dtype, device)

    def caches() -> list[Tensor]:
        return [torch.zeros(3, 1, 16, dim, dtype=FP8, device=device) for _ in range(2)]

    mine, twin = caches(), caches()
    qk_norm_rope_kv_write(*given, *mine)
    reference.qk_norm_rope_kv_write(*given, *twin)
    check_written(mine, twin)
    mine, twin = caches(), caches()
    bias = torch.ones(4 * dim, dtype=dtype, device=device)
    kv_write(given[0].clone(), bias, given[-1], *mine)
    reference.kv_write(given[0].clone(), bias, given[-1], *twin)
    assert all(same(one, other) for one, other in zip(mine, twin, strict=True))


@pytest.mark.triton
@pytest.mark.parametrize(
    ("dim", "block_size", "dtype", "how"),
    [
        pytest.param(64, 64, BF16, {"level": 0}, marks=pytest.mark.long),
        (96, 16, FP16, {"level": 1}),
        (16, 64, BF16, {"level": 2, "ahead": True}),
        (16, 16, BF16, {"level": 0, "exact": True}),
    ],
)
def test_one_kernel_writes_and_reads_as_two(
    paged: Any, dim: int, block_size: int, dtype: torch.dtype, how: dict[str, Any]
) -> None:
    """The newest token, whose key and value its own program reads back, lies at borders."""
    from quire.kernels.attention.decode import decode_attention, rope_decode_attention
    from quire.kernels.attention.qk_norm_rope import qk_norm_rope_kv_write

    contexts = [1, 17, 64, 65]
    cache = paged(contexts, kv_heads=1, block_size=block_size, dim=dim, dtype=FP8)
    device = cache.k_cache.device
    qkv, *norms, eps, _, _, _ = write_arguments(len(contexts), dim, dtype, device)
    norms[1] = norms[0]
    table = write_arguments(max(contexts), dim, dtype, device)[4]
    last = cache.context_lens - 1
    blocks = cache.block_tables.gather(1, (last // block_size).long()[:, None])[:, 0]
    slots = blocks.long() * block_size + last % block_size
    rest = (cache.block_tables, cache.context_lens, dim**-0.5, max(contexts))
    given = (qkv, *norms, eps, table, last, slots)
    fused, apart = ([cache.k_cache.clone(), cache.v_cache.clone()] for _ in range(2))
    got = rope_decode_attention(*given, *fused, *rest, **how)
    q = qk_norm_rope_kv_write(*given, *apart)
    assert same(got, decode_attention(q, *apart, *rest, **how))
    assert all(same(one, other) for one, other in zip(fused, apart, strict=True))
    assert got[0].isnan().any() and got[1:].isfinite().all()  # a row that is no number is alone


@pytest.mark.triton
def test_blocks_are_copied_as_they_are(device: torch.device) -> None:
    from quire.kernels.state.copy_blocks import copy_blocks

    bits = torch.arange(2 * 3 * 256, device=device).to(torch.uint8).view(2, 3, 1, 16, 16)
    k, v = bits.clone().view(FP8), bits.flip(-1).clone().view(FP8)
    copy_blocks(k, v, torch.tensor([1], device=device), torch.tensor([2], device=device))
    for cache, before in ((k, bits), (v, bits.flip(-1))):
        assert torch.equal(cache.view(torch.uint8)[:, 2], before[:, 1])
        assert torch.equal(cache.view(torch.uint8)[:, :2], before[:, :2])


@pytest.mark.triton
def test_a_cache_of_another_dtype_is_refused(paged: Any) -> None:
    from quire.kernels.attention.decode import decode_attention

    cache = paged([3], kv_heads=1, block_size=16, dim=16, dtype=torch.float8_e5m2)
    q = queries(1, 1, 16, BF16, cache.k_cache.device)
    rest = (cache.block_tables, cache.context_lens, 1.0, 3)
    with pytest.raises(ValueError, match=r"a cache of torch\.float8_e5m2 is not supported"):
        decode_attention(q, cache.k_cache, cache.v_cache, *rest)
