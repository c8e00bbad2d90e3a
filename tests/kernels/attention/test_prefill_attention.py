"""Prefill attention in Triton against its twin: ragged rows, prefixes, chunks, no leaks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.attention_shapes import sweep_shapes

from quire.kernels import reference

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

pytestmark = pytest.mark.triton


def check(
    paged: Any,
    rows: list[tuple[int, int]],
    *,
    group: int,
    kv_heads: int,
    block_size: int,
    dim: int,
    dtype: torch.dtype,
    **launch: Any,
) -> None:
    """rows: (cached, new) tokens of each; the error stays within that of the twin (or rounding)."""
    from quire.kernels.attention.prefill import prefill_attention

    news = [new for _, new in rows]
    contexts = [cached + new for cached, new in rows]
    cache = paged(contexts, kv_heads=kv_heads, block_size=block_size, dim=dim, dtype=dtype)
    device = cache.k_cache.device
    q = torch.randn(sum(news), group * kv_heads, dim, generator=torch.Generator().manual_seed(5))
    q = q.to(device, dtype)
    starts = torch.tensor([0, *news]).cumsum(0).int().to(device)
    rest = (
        cache.block_tables, starts, cache.context_lens, dim**-0.5, max(news), max(contexts),
    )  # fmt: skip
    buffer = torch.full_like(q, float("nan"))
    out = prefill_attention(q, cache.k_cache, cache.v_cache, *rest, out=buffer, **launch)
    assert out is buffer
    assert torch.isfinite(out).all()
    oracle = reference.prefill_attention(q.float(), *cache.clean(), *rest)
    twin = reference.prefill_attention(q, *cache.clean(dtype), *rest).float()
    error = (out.float() - oracle).norm()
    step = {BF16: 2.0**-9, FP16: 2.0**-12, FP32: 2.0**-20}[dtype]
    assert error <= 2 * max((twin - oracle).norm(), oracle.norm() * step)


@pytest.mark.parametrize(
    ("dim", "group", "block_size", "dtype"),
    [(64, 2, 64, FP32), (128, 2, 64, BF16), (96, 3, 128, FP16), (32, 16, 16, BF16)],
)
def test_ragged_rows(paged: Any, dim: int, group: int, block_size: int, dtype: torch.dtype) -> None:
    edge = block_size
    rows = [(0, 1), (0, edge - 1), (edge, 1), (edge - 1, 2), (3, edge + 1), (130, 64), (0, 130)]
    check(paged, rows, group=group, kv_heads=1, block_size=block_size, dim=dim, dtype=dtype)


@pytest.mark.parametrize("dim", [16, 256])
def test_other_heads(paged: Any, dim: int) -> None:
    check(paged, [(0, 20), (70, 9)], group=4, kv_heads=2, block_size=32, dim=dim, dtype=BF16)


def test_rows_without_new_tokens_are_passed_over(paged: Any) -> None:
    rows = [(5, 0), (0, 40), (64, 0), (64, 1), (9, 0)]
    check(paged, rows, group=2, kv_heads=1, block_size=32, dim=64, dtype=BF16)


def test_many_rows_find_their_tiles(paged: Any) -> None:
    """More rows than one step of the search for a tile's row reads."""
    rows = [(row % 3, (row % 4 == 1) + (row == 77) * 30) for row in range(150)]
    check(paged, rows, group=2, kv_heads=1, block_size=16, dim=16, dtype=BF16)


def test_a_chunk_gives_what_the_whole_gave(paged: Any) -> None:
    from quire.kernels.attention.prefill import prefill_attention

    cache = paged([200], kv_heads=1, block_size=64, dim=64, dtype=BF16)
    device = cache.k_cache.device
    q = torch.randn(200, 2, 64, generator=torch.Generator().manual_seed(1)).to(device, BF16)

    def run(begin: int, end: int) -> torch.Tensor:
        starts = torch.tensor([0, end - begin], dtype=torch.int32, device=device)
        context = torch.tensor([end], dtype=torch.int32, device=device)
        return prefill_attention(
            q[begin:end], cache.k_cache, cache.v_cache, cache.block_tables, starts, context,
            0.125, end - begin, end,
        )  # fmt: skip

    whole = run(0, 200)
    chunks = torch.cat([run(0, 70), run(70, 71), run(71, 200)])
    torch.testing.assert_close(chunks, whole, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("block_size", [64, pytest.param(128, marks=pytest.mark.long)])
def test_tiles_through_descriptors(paged: Any, block_size: int) -> None:
    from quire.kernels.attention.prefill_launch import Tiles

    for dtype in (FP32, BF16):
        check(
            paged, [(0, 70), (130, 70)], group=2, kv_heads=1, block_size=block_size, dim=64,
            dtype=dtype, tiles=Tiles(64, 64, 4, 2, tma=True),
        )  # fmt: skip


@pytest.mark.parametrize("group", [1, 2, 4, pytest.param(8, marks=pytest.mark.long)])
def test_contexts_around_a_split(paged: Any, group: int) -> None:
    """Splits of 64 tokens: prefixes and chunks that end before, at and past each boundary."""
    rows = [(60, 3), (60, 4), (0, 0), (60, 5), (126, 1), (127, 1), (128, 1), (122, 8)]
    rows += [(0, 65)] if group == 1 else []
    shape = {"group": group, "kv_heads": 1, "block_size": 32, "dim": 32, "dtype": BF16}
    check(paged, rows, split=64, **shape)


@pytest.mark.parametrize(
    ("dim", "block_size", "dtype"), [(64, 64, BF16), (96, 16, FP16), (16, 128, FP32)]
)
def test_a_few_tokens_over_a_long_prefix_are_split(
    paged: Any, dim: int, block_size: int, dtype: torch.dtype
) -> None:
    from quire.kernels.attention.prefill_launch import SPLIT

    shape = {"group": 2, "kv_heads": 1, "block_size": block_size, "dim": dim, "dtype": dtype}
    for context in (SPLIT - 1, SPLIT, SPLIT + 1, 3 * SPLIT + 2):
        check(paged, [(context - 3, 3)], **shape)
    check(paged, [(0, 0), (500, 20), (3, 0), (0, 9), (511, 1), (2, 0)], **shape)


def _split_case(paged: Any, rows: list[tuple[int, int]], seed: int = 0) -> tuple[Any, ...]:
    """What prefill_attention takes for rows of (cached, new), up to the scale."""
    news = [new for _, new in rows]
    contexts = [sum(row) for row in rows]
    cache = paged(contexts, kv_heads=1, block_size=64, dim=64, dtype=BF16)
    device = cache.k_cache.device
    q = torch.randn(sum(news), 2, 64, generator=torch.Generator().manual_seed(seed))
    starts = torch.tensor([0, *news]).cumsum(0).int().to(device)
    return (
        q.to(device, BF16), cache.k_cache, cache.v_cache, cache.block_tables, starts,
        cache.context_lens, 0.125,
    )  # fmt: skip


def test_one_split_gives_the_bits_of_no_split(paged: Any) -> None:
    """What a query sees decides: those within the first split are summed as without splits."""
    from quire.kernels.attention.prefill import prefill_attention

    arguments = _split_case(paged, [(90, 60)])
    split, plain = (prefill_attention(*arguments, 60, 4096, split=n) for n in (128, 0))
    assert torch.equal(split[:38], plain[:38])
    assert not torch.equal(split, plain)
    torch.testing.assert_close(split, plain, atol=1e-2, rtol=1e-2)


def test_the_bound_of_the_context_changes_nothing(paged: Any) -> None:
    from quire.kernels.attention.prefill import prefill_attention

    for rows in ([(100, 40)], [(300, 40), (30, 3)]):
        arguments = _split_case(paged, rows)
        exact, bounded = (
            prefill_attention(*arguments, 40, bound) for bound in (sum(rows[0]), 16_384)
        )
        assert torch.equal(exact, bounded)


def test_long_contexts_take_longer_splits(paged: Any) -> None:
    """Beyond the most splits of one length: here 16 of 64 tokens."""
    shape = {"group": 2, "kv_heads": 1, "block_size": 128, "dim": 16, "dtype": BF16}
    check(paged, [(1020, 4), (1020, 5), (2040, 10)], split=64, **shape)


def test_padding_of_the_tokens_is_left_unwritten(paged: Any) -> None:
    from quire.kernels.attention.prefill import prefill_attention

    q, *rest = _split_case(paged, [(300, 9)])
    padded = torch.cat([q, torch.full_like(q, float("nan"))])
    out = prefill_attention(padded, *rest, 9, 309, out=torch.full_like(padded, -7.0))
    assert torch.equal(out[:9], prefill_attention(q, *rest, 9, 309))
    assert (out[9:] == -7.0).all()


def test_a_split_cuts_no_tile(paged: Any) -> None:
    from quire.kernels.attention.prefill import prefill_attention

    with pytest.raises(ValueError, match="split 96 is not a multiple of 64"):
        prefill_attention(*_split_case(paged, [(0, 9)]), 9, 9, split=96)


def test_what_is_not_supported_is_named() -> None:
    from quire.kernels.attention.prefill import prefill_attention

    cache = torch.zeros(2, 1, 64, 80, dtype=BF16)
    q = torch.zeros(3, 2, 80, dtype=BF16)
    one = torch.ones(1, 1, dtype=torch.int32)
    starts = torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(ValueError, match="head_dim 80"):
        prefill_attention(q, cache, cache, one, starts, one[0] * 3, 1.0, 3, 3)


@pytest.mark.gpu
@pytest.mark.parametrize(("dim", "block_size", "dtype", "group", "kv_heads"), sweep_shapes())
def test_gpu_sweep(
    paged: Any, dim: int, block_size: int, dtype: torch.dtype, group: int, kv_heads: int
) -> None:
    rows = [(0, 1), (0, 0), (0, 127), (0, 128), (0, 129), (1, 1), (63, 64), (64, 64), (65, 63)]
    rows += [(0, 700), (500, 1), (512, 8), (513, 9), (1000, 300), (127, 1), (128, 1), (2000, 3)]
    check(paged, rows, group=group, kv_heads=kv_heads, block_size=block_size, dim=dim, dtype=dtype)


@pytest.mark.gpu
def test_gpu_every_launch_shape_agrees(paged: Any) -> None:
    from quire.kernels.attention.prefill_launch import Tiles

    for tiles in (Tiles(64, 128, 8, 2), Tiles(128, 128, 8, 3), Tiles(128, 64, 8, 3)):
        for tma in (False, True):
            check(
                paged, [(0, 1000), (300, 513), (77, 1)], group=2, kv_heads=4, block_size=128,
                dim=128, dtype=BF16, tiles=replace(tiles, tma=tma),
            )  # fmt: skip


@pytest.mark.gpu
def test_gpu_one_long_row(paged: Any) -> None:
    check(paged, [(100, 5000)], group=2, kv_heads=2, block_size=64, dim=128, dtype=BF16)


@pytest.mark.gpu
@pytest.mark.parametrize(("dim", "block_size", "dtype", "group", "kv_heads"), sweep_shapes())
def test_gpu_split_sweep(
    paged: Any, dim: int, block_size: int, dtype: torch.dtype, group: int, kv_heads: int
) -> None:
    shape = {"group": group, "kv_heads": kv_heads, "block_size": block_size, "dim": dim}
    for row in ((200, 55), (200, 56), (200, 57), (2944, 56), (4095, 1), (4090, 7), (9000, 30)):
        check(paged, [row], dtype=dtype, split=256, **shape)
    rows = [(0, 0), (2944, 20), (255, 1), (0, 300), (256, 1), (3, 0), (500, 13), (7, 0)]
    check(paged, rows, dtype=dtype, split=256, **shape)
    check(paged, rows, dtype=dtype, split=512, **shape)


@pytest.mark.gpu
@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_gpu_a_prefix_hit(paged: Any, group: int) -> None:
    from quire.kernels.attention.prefill_launch import Tiles

    shape = {"group": group, "kv_heads": 8, "block_size": 64, "dim": 128, "dtype": BF16}
    for rows in ([(2944, 56)], [(2944, 56), (0, 8)], [(2944, 3), (0, 13)]):
        check(paged, rows, **shape)
        for tma in (False, True):
            check(paged, rows, split=256, tiles=Tiles(128, 64, 8, 3, tma=tma), **shape)


@pytest.mark.gpu
@pytest.mark.parametrize("pdl", [False, True])
def test_gpu_capture_replays_split_steps_with_new_rows(paged: Any, pdl: bool) -> None:
    """One captured graph serves whatever the device tensors hold, empty splits included."""
    from quire.kernels.attention.prefill import prefill_attention

    cache = paged([3000, 700, 64], kv_heads=8, block_size=64, dim=128, dtype=BF16)
    q = torch.randn(64, 16, 128, device="cuda").to(BF16)
    starts = torch.zeros(4, dtype=torch.int32, device="cuda")

    def run(**launch: Any) -> torch.Tensor:
        return prefill_attention(
            q, cache.k_cache, cache.v_cache, cache.block_tables, starts, cache.context_lens, 0.09,
            64, 4096, **launch,
        )  # fmt: skip

    def put(news: list[int], contexts: list[int]) -> None:
        starts[1:].copy_(torch.tensor(news).cumsum(0))
        cache.context_lens.copy_(torch.tensor(contexts))

    put([56, 0, 8], [3000, 700, 8])
    run(pdl=pdl)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(pdl=pdl)
    cases: tuple[tuple[list[int], list[int]], ...] = (
        ([56, 0, 8], [3000, 700, 8]), ([1, 63, 0], [256, 700, 64]), ([4, 40, 20], [5, 257, 20]),
    )  # fmt: skip
    for news, contexts in cases:
        put(news, contexts)
        graph.replay()
        assert torch.equal(out, run())
        assert torch.isfinite(out).all()


@pytest.mark.gpu
def test_gpu_offsets_beyond_32_bits(device: torch.device) -> None:
    """A cache of more than 2**31 elements: blocks at its end are read, not those they wrap to."""
    from quire.kernels.attention.prefill import prefill_attention

    kv_heads, block_size, dim = 8, 64, 128
    blocks = 2**31 // (kv_heads * block_size * dim) + 8
    caches = [
        torch.zeros(blocks, kv_heads, block_size, dim, dtype=BF16, device=device) for _ in range(2)
    ]
    for cache in caches:
        cache[-3:] = torch.randn(3, kv_heads, block_size, dim, device=device).to(BF16)
    tables = torch.tensor([[blocks - 1, blocks - 3, blocks - 2]], dtype=torch.int32, device=device)
    starts = torch.tensor([0, 150], dtype=torch.int32, device=device)
    rest = (tables, starts, starts[1:].clone(), dim**-0.5, 150, 150)
    q = torch.randn(150, 16, dim, device=device).to(BF16)
    out = prefill_attention(q, *caches, *rest)
    twin = reference.prefill_attention(q, *caches, *rest)
    torch.testing.assert_close(out, twin, atol=2e-2, rtol=2e-2)


HOPPER_CASES = [
    ([(0, 1), (900, 64), (77, 1), (63, 65), (3000, 100), (0, 700)], 2, 64, 128, BF16),
    ([(8000, 513), (1, 2000)], 4, 128, 128, BF16),
    ([(9000, 300), (0, 40), (300, 3), (63, 999)], 5, 64, 64, BF16),
    ([(127, 1000), (0, 999), (5, 64)], 16, 256, 128, FP16),
    ([(0, 2600)], 2, 64, 128, BF16),
    ([(127, 3000), (8000, 1100), (0, 900), (64, 400)], 16, 64, 128, BF16),
    ([(1, 1951), (0, 2017), (3, 97), (65, 1)], 4, 64, 128, BF16),
]


@pytest.mark.gpu
@pytest.mark.parametrize("pdl", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("rows", "group", "block_size", "dim", "dtype"), HOPPER_CASES)
def test_gpu_the_kernel_of_sm_90_changes_no_bit(
    paged: Any,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[tuple[int, int]],
    group: int,
    block_size: int,
    dim: int,
    dtype: torch.dtype,
    grouped: bool,
    pdl: bool,
) -> None:
    """What sm_90 takes against the kernel of every other card, NaN behind the contexts."""
    from quire.kernels.attention import prefill, prefill_launch

    for_hopper = prefill_launch.for_hopper
    taken = []

    def noted(launch: prefill_launch.PrefillLaunch, *rest: Any) -> bool:
        taken.append(launch.groups * for_hopper(launch, *rest))
        return bool(taken[-1])

    news, contexts = [new for _, new in rows], [sum(row) for row in rows]
    cache = paged(contexts, kv_heads=8, block_size=block_size, dim=dim, dtype=dtype)
    q = torch.randn(sum(news), 8 * group, dim, generator=torch.Generator().manual_seed(5))
    starts = torch.tensor([0, *news]).cumsum(0).int().cuda()
    arguments = (
        q.to("cuda", dtype), cache.k_cache, cache.v_cache, cache.block_tables, starts,
        cache.context_lens, dim**-0.5, max(news), max(contexts),
    )  # fmt: skip
    monkeypatch.setattr(prefill, "for_hopper", noted)
    monkeypatch.setattr(prefill_launch, "_gain_in_groups", lambda *_: grouped)
    found = [prefill.prefill_attention(*arguments, pdl=pdl) for _ in range(3)]
    if not any(taken):
        pytest.skip("another card, or another Triton, than hopper_prefill.py is for")
    assert max(taken) == (prefill_launch.GROUPS if grouped else 1)
    monkeypatch.setattr(prefill, "for_hopper", lambda *_: False)
    twin = prefill.prefill_attention(*arguments, pdl=pdl)
    assert torch.isfinite(twin).all()
    assert all(torch.equal(twin, again) for again in found)
