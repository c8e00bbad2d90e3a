"""Prefill attention in Triton against its twin: ragged rows, prefixes, chunks, no leaks."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from quire.kernels import reference

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

pytestmark = pytest.mark.triton


def sweep_shapes() -> list[tuple[int, int, torch.dtype, int, int]]:
    """(dim, block_size, dtype, group, kv_heads): each pair of the first two once in bf16, each dim
    in the other dtypes; groups in turn, for every combination costs a compilation."""
    dims, blocks = (16, 32, 64, 96, 128, 256), (16, 32, 64, 128, 256)
    groups = ((1, 2), (2, 8), (5, 1), (16, 2))
    shapes = [
        (dim, block, BF16, *groups[(i + j) % 4])
        for i, dim in enumerate(dims)
        for j, block in enumerate(blocks)
    ]
    for i, dim in enumerate(dims):
        shapes.append((dim, blocks[i % 5], FP16, *groups[(i + 1) % 4]))
        shapes.append((dim, blocks[(i + 2) % 5], FP32, *groups[(i + 2) % 4]))
    return shapes


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
    from quire.kernels.prefill_attention import prefill_attention

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
    rows = [(row % 3, 1 + (row == 77) * 30) for row in range(150)]
    check(paged, rows, group=2, kv_heads=1, block_size=16, dim=16, dtype=BF16)


def test_a_chunk_gives_what_the_whole_gave(paged: Any) -> None:
    from quire.kernels.prefill_attention import prefill_attention

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


@pytest.mark.parametrize("block_size", [64, 128])
def test_tiles_through_descriptors(paged: Any, block_size: int) -> None:
    from quire.kernels.prefill_attention import Tiles

    for dtype in (FP32, BF16):
        check(
            paged, [(0, 150), (200, 70)], group=2, kv_heads=1, block_size=block_size, dim=64,
            dtype=dtype, tiles=Tiles(64, 64, 4, 2, tma=True),
        )  # fmt: skip


def test_what_is_not_supported_is_named() -> None:
    from quire.kernels.prefill_attention import prefill_attention

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
    from quire.kernels.prefill_attention import Tiles

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
def test_gpu_offsets_beyond_32_bits(device: torch.device) -> None:
    """A cache of more than 2**31 elements: blocks at its end are read, not those they wrap to."""
    from quire.kernels.prefill_attention import prefill_attention

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
