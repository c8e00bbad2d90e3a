"""Decode attention in Triton against its twin: every boundary, every shape, no leaks."""

import itertools
from typing import Any

import pytest
import torch
from support.attention_shapes import sweep_shapes

from quire.kernels import reference

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
LEVELS = (0, 1, 2)  # a split is a tile, a unit, a long split
SPLITS: list[dict[str, Any]] = [*({"level": n} for n in LEVELS), {"level": 2, "ahead": False}]
POINTERS, BOXES = ([split | {"tma": tma} for split in SPLITS] for tma in (False, True))
WAYS = [*POINTERS, *BOXES]
PLAIN: dict[str, Any] = {"kv_heads": 1, "block_size": 16, "dim": 16, "dtype": FP32}

pytestmark = pytest.mark.triton


def check(
    paged: Any,
    contexts: list[int],
    *,
    group: int,
    kv_heads: int,
    block_size: int,
    dim: int,
    dtype: torch.dtype,
    seed: int = 0,
    **launch: Any,
) -> torch.Tensor:
    """Run one case; the error against fp32 stays within that of the twin (or rounding)."""
    from quire.kernels.attention.decode import decode_attention

    cache = paged(
        contexts, kv_heads=kv_heads, block_size=block_size, dim=dim, dtype=dtype, seed=seed
    )
    rng = torch.Generator().manual_seed(seed + 1)
    q = torch.randn(len(contexts), group * kv_heads, dim, generator=rng)
    q = q.to(cache.k_cache.device, dtype)
    rest = (cache.block_tables, cache.context_lens, dim**-0.5, max(1, *contexts))
    out = decode_attention(q, cache.k_cache, cache.v_cache, *rest, **launch)
    oracle = reference.decode_attention(q.float(), *cache.clean(), *rest)
    twin = reference.decode_attention(q, cache.k_cache, cache.v_cache, *rest)
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    error = (out.float() - oracle).norm()
    # Exactly rounded, the twin's error would be the rounding of its result alone; the kernel also
    # rounds the weights to the values' dtype, which the matrix units take.
    step = {BF16: 2.0**-9, FP16: 2.0**-12, FP32: 2.0**-21}[dtype]
    assert error <= 2 * max((twin.float() - oracle).norm(), oracle.norm() * step)
    return out


@pytest.mark.parametrize(
    ("dim", "group", "kv_heads", "block_size", "dtype", "level"),
    [
        *((64, 2, 1, 64, FP32, level) for level in LEVELS),
        *((128, 2, 1, 16, BF16, level) for level in LEVELS),
        *((96, 3, 1, 32, FP16, level) for level in LEVELS),
        *((256, 16, 1, 64, BF16, level) for level in LEVELS[1:]),
        pytest.param(256, 16, 1, 64, BF16, 0, marks=pytest.mark.long),
    ],
)
def test_contexts_around_every_boundary(
    paged: Any, dim: int, group: int, kv_heads: int, block_size: int, dtype: torch.dtype, level: int
) -> None:
    from quire.kernels.attention.decode_launch import tile_tokens

    tile = tile_tokens(dim, dtype)
    edges = sorted({1, block_size - 1, block_size, block_size + 1, tile - 1, tile, tile + 1, 257})
    check(
        paged, edges, group=group, kv_heads=kv_heads, block_size=block_size, dim=dim, dtype=dtype,
        level=level,
    )  # fmt: skip


@pytest.mark.parametrize("dim", [16, 32])
@pytest.mark.parametrize("group", [1, 5])
def test_small_heads(paged: Any, dim: int, group: int) -> None:
    check(paged, [1, 70, 130], group=group, kv_heads=2, block_size=128, dim=dim, dtype=BF16)


def same_bits(results: list[torch.Tensor]) -> bool:
    return all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize(
    ("dim", "dtype", "tile", "contexts"),
    [
        (64, BF16, None, [256, 2049]),
        pytest.param(64, BF16, None, [255, 257, 2048], marks=pytest.mark.long),
        pytest.param(16, FP32, 64, [1, 8192, 8193], marks=pytest.mark.long),
        (256, FP32, None, [513]),
        pytest.param(256, FP32, None, [256, 512], marks=pytest.mark.long),
    ],
)
def test_all_splits_give_the_same_bits(
    paged: Any, dim: int, dtype: torch.dtype, tile: int | None, contexts: list[int]
) -> None:
    shape = {"group": 2, "kv_heads": 1, "block_size": 256, "dim": dim, "dtype": dtype}
    ways = POINTERS if dtype == FP32 else WAYS  # descriptors are for 16 bits
    assert same_bits([check(paged, contexts, tile=tile, **way, **shape) for way in ways])


@pytest.mark.long
def test_the_levels_agree_at_every_edge_of_the_tree(
    paged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree in small: tiles of 16, units of 32, long splits of 128, longer units beyond 512."""
    from quire.kernels.attention import decode_launch as module

    monkeypatch.setattr(module, "UNIT", 32)
    monkeypatch.setattr(module, "LONG", 4)
    monkeypatch.setattr(module, "MAX_SPLITS", 16)
    edges = [15, 16, 17, 31, 32, 33, 127, 128, 129, 256, 257, 384, 511, 512, 513, 1025]
    shape = {"group": 3, "kv_heads": 1, "block_size": 32, "dim": 16}
    for dtype, ways in ((FP32, POINTERS), (FP16, [POINTERS[0], *BOXES])):
        found = [check(paged, edges, dtype=dtype, tile=16, **way, **shape) for way in ways]
        assert same_bits(found)


NAN, INF = float("nan"), float("inf")
IN_TURN = [((NAN, INF)[(i + i // len(POINTERS)) % 2], way) for i, way in enumerate(WAYS)]
EACH = list(itertools.product((NAN, INF), WAYS))


@pytest.mark.parametrize(
    ("block_size", "poisoned"),
    [
        pytest.param(64, IN_TURN, id="64"),
        pytest.param(64, EACH, id="64-each", marks=pytest.mark.long),
        pytest.param(128, EACH, id="128-each", marks=pytest.mark.long),
    ],
)
def test_nothing_past_a_context_is_read(
    paged: Any, block_size: int, poisoned: list[tuple[float, dict[str, Any]]]
) -> None:
    """The caches stay as they are, and what no context holds may be infinite or no number."""
    from quire.kernels.attention.decode import decode_attention

    contexts = [1, block_size - 1, block_size, 0, 129]
    cache = paged(contexts, kv_heads=2, block_size=block_size, dim=64, dtype=BF16)
    q = torch.randn(len(contexts), 4, 64, generator=torch.Generator().manual_seed(7))
    q = q.to(cache.k_cache.device, BF16)
    rest = (cache.block_tables, cache.context_lens, 0.125, 129)
    wanted = decode_attention(q, *cache.clean(BF16), *rest, **WAYS[0])
    for poison, way in poisoned:
        caches = [held.nan_to_num(nan=poison) for held in (cache.k_cache, cache.v_cache)]
        before = [held.clone() for held in caches]
        assert torch.equal(decode_attention(q, *caches, *rest, **way), wanted)
        for held, was in zip(caches, before, strict=True):
            torch.testing.assert_close(held, was, rtol=0, atol=0, equal_nan=True)


def test_a_row_is_the_same_alone_and_among_others(paged: Any) -> None:
    from quire.kernels.attention.decode import decode_attention

    contexts = [300, 1, 700, 64]
    cache = paged(contexts, kv_heads=1, block_size=64, dim=64, dtype=BF16)
    q = torch.randn(4, 2, 64, generator=torch.Generator().manual_seed(3))
    q = q.to(cache.k_cache.device, BF16)

    def run(rows: slice, longest: int, level: int) -> torch.Tensor:
        return decode_attention(
            q[rows], cache.k_cache, cache.v_cache, cache.block_tables[rows],
            cache.context_lens[rows], 0.125, longest, level=level,
        )  # fmt: skip

    together = run(slice(None), 4096, 2)
    for row, context in enumerate(contexts):
        alone = run(slice(row, row + 1), context, 0)
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("level", LEVELS)
def test_an_empty_context_gives_zeros(paged: Any, level: int) -> None:
    out = check(
        paged, [0, 40, 0], group=2, kv_heads=1, block_size=16, dim=64, dtype=BF16, level=level
    )
    assert not out[0].any()
    assert not out[2].any()


@pytest.mark.parametrize("level", LEVELS)
def test_contexts_beyond_the_last_split_take_longer_splits(
    paged: Any, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    from quire.kernels.attention import decode_launch as module

    monkeypatch.setattr(module, "UNIT", 128)
    monkeypatch.setattr(module, "MAX_SPLITS", 2)
    check(
        paged, [128, 256, 257, 600], group=2, kv_heads=1, block_size=64, dim=64, dtype=FP32,
        level=level,
    )  # fmt: skip


def test_the_workspace_holds_the_splits_of_every_context() -> None:
    from quire.kernels.attention.decode_launch import (
        LONG,
        MAX_SPLITS,
        UNIT,
        most_in_tiles,
        num_splits,
    )

    for n, programs in itertools.product(
        [*range(1, 4200, 7), 8191, 8192, 8193, 16_384, 16_385, 40_960], (1, 64, 72, 128, 4096)
    ):
        most = most_in_tiles(programs, 64)
        unit = UNIT * max(1, -(-n // (UNIT * MAX_SPLITS)))
        tile = 64 if n <= most else unit
        for level, split in enumerate((tile, unit, unit * LONG)):
            for longest in (n, n + 1, 40_960):
                assert -(-n // split) <= num_splits(longest, 64, level, most) <= MAX_SPLITS
    assert num_splits(2048, 64, 2, 0) == 1


def test_few_rows_take_short_splits_and_many_take_long_ones() -> None:
    from quire.kernels.attention.decode_launch import split_level

    levels = [split_level(programs) for programs in (1, 8, 128, 129, 256, 257, 4096)]
    assert levels == sorted(levels)
    assert levels[0] == 0
    assert levels[-1] == 2


@pytest.mark.parametrize(("rows", "q_heads"), [(1, 16), (256, 5), (300, 40)])
def test_a_merge_of_several_heads_is_that_of_one(
    paged: Any, monkeypatch: pytest.MonkeyPatch, rows: int, q_heads: int
) -> None:
    from quire.kernels.attention import decode_merge as module

    heads, warps = module.merge_shape(rows, q_heads)
    assert heads & (heads - 1) == 0
    assert 1 <= warps <= heads
    shape = {"group": 5, "kv_heads": 1, "block_size": 64, "dim": 32, "dtype": FP32}
    found = []
    for merged in (1, heads):
        monkeypatch.setattr(module, "merge_shape", lambda *_, h=merged: (h, 1))
        found.append(check(paged, [300, 0, 64, 1100], level=1, **shape))
    assert same_bits(found)


@pytest.mark.parametrize(
    "group",
    [1, pytest.param(2, marks=pytest.mark.long), 3, pytest.param(7, marks=pytest.mark.long), 16],
)
def test_the_last_to_arrive_merges_every_head_and_puts_the_counters_back(
    paged: Any, device: torch.device, group: int
) -> None:
    counters = torch.zeros(8, dtype=torch.int32, device=device)
    shape = PLAIN | {"kv_heads": 2, "block_size": 64, "group": group, "level": 2}
    found = [check(paged, [300, 0, 64, 2100], counters=counters, **shape) for _ in range(2)]
    assert same_bits(found)
    assert not counters.any()


def test_where_there_are_too_few_counters_none_is_used(paged: Any, device: torch.device) -> None:
    counters = torch.full((1,), 7, dtype=torch.int32, device=device)
    check(paged, [2100, 2100], **PLAIN, group=1, level=2, counters=counters)
    assert counters.item() == 7


def test_a_buffer_given_is_the_buffer_written(paged: Any) -> None:
    from quire.kernels.attention.decode import decode_attention

    cache = paged([33], kv_heads=1, block_size=32, dim=32, dtype=FP32)
    q = torch.randn(1, 2, 32).to(cache.k_cache.device)
    rest = (cache.k_cache, cache.v_cache, cache.block_tables, cache.context_lens, 0.2, 33)
    buffer = torch.full_like(q, float("nan"))
    assert decode_attention(q, *rest, out=buffer) is buffer
    assert torch.equal(buffer, decode_attention(q, *rest))


@pytest.mark.parametrize(
    ("dim", "dtype", "block_size", "group", "named"),
    [
        (80, BF16, 64, 2, "head_dim 80"),
        (64, torch.float64, 64, 2, "float64"),
        (64, BF16, 48, 2, "block_size 48"),
        (64, BF16, 64, 32, "32 query heads"),
    ],
)
def test_what_is_not_supported_is_named(
    dim: int, dtype: torch.dtype, block_size: int, group: int, named: str
) -> None:
    from quire.kernels.attention.decode import decode_attention

    cache = torch.zeros(2, 1, block_size, dim, dtype=dtype)
    q = torch.zeros(1, group, dim, dtype=dtype)
    tables, contexts = torch.ones(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=named):
        decode_attention(q, cache, cache, tables, contexts, 1.0, 1)


def test_a_tile_must_divide_a_unit(paged: Any) -> None:
    with pytest.raises(ValueError, match="tile 96"):
        check(paged, [5], group=1, kv_heads=1, block_size=16, dim=16, dtype=FP32, tile=96)


@pytest.mark.gpu
@pytest.mark.parametrize(("dim", "block_size", "dtype", "group", "kv_heads"), sweep_shapes())
def test_gpu_sweep(
    paged: Any, dim: int, block_size: int, dtype: torch.dtype, group: int, kv_heads: int
) -> None:
    contexts = [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257]
    contexts += [511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049, 3000]
    shape = {"group": group, "kv_heads": kv_heads, "block_size": block_size, "dim": dim}
    others = ({"num_warps": 4}, {"num_stages": 7})
    ways = [*WAYS, BOXES[2] | {"num_warps": 2}, *(BOXES[3] | other for other in others)]
    assert same_bits([check(paged, contexts, dtype=dtype, **shape, **way) for way in ways])


@pytest.mark.gpu
def test_gpu_long_contexts(paged: Any) -> None:
    shape = {"group": 2, "kv_heads": 2, "block_size": 64, "dim": 128, "dtype": BF16}
    contexts = [8192, 8193, 16384, 16385, 40960]
    assert same_bits([check(paged, contexts, **way, **shape) for way in WAYS])


@pytest.mark.gpu
def test_gpu_offsets_beyond_32_bits(device: torch.device) -> None:
    """A cache of more than 2**31 elements: blocks at its end are read, not those they wrap to."""
    from quire.kernels.attention.decode import decode_attention

    kv_heads, block_size, dim = 8, 64, 128
    blocks = 2**31 // (kv_heads * block_size * dim) + 8
    caches = [
        torch.zeros(blocks, kv_heads, block_size, dim, dtype=BF16, device=device) for _ in range(2)
    ]
    for cache in caches:
        cache[-3:] = torch.randn(3, kv_heads, block_size, dim, device=device).to(BF16)
    tables = torch.tensor([[blocks - 1, blocks - 3, blocks - 2]], dtype=torch.int32, device=device)
    contexts = torch.tensor([150], dtype=torch.int32, device=device)
    q = torch.randn(1, 16, dim, device=device).to(BF16)
    twin = reference.decode_attention(q, *caches, tables, contexts, dim**-0.5, 150)
    for way in WAYS:
        out = decode_attention(q, *caches, tables, contexts, dim**-0.5, 150, **way)
        torch.testing.assert_close(out, twin, atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("pdl", [False, True])
def test_gpu_capture_replays_with_new_contexts(paged: Any, pdl: bool) -> None:
    """One captured graph serves whatever the device tensors hold, padded rows included."""
    from quire.kernels.attention.decode import decode_attention

    cache = paged([900, 70, 0, 513], kv_heads=8, block_size=64, dim=128, dtype=BF16)
    q = torch.randn(4, 16, 128, device="cuda").to(BF16)
    arguments = (cache.k_cache, cache.v_cache, cache.block_tables, cache.context_lens, 0.09, 4096)
    decode_attention(q, *arguments, pdl=pdl)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode_attention(q, *arguments, pdl=pdl)
    for contexts in ([900, 70, 0, 513], [1, 64, 0, 65]):
        cache.context_lens.copy_(torch.tensor(contexts))
        graph.replay()
        assert torch.equal(out, decode_attention(q, *arguments))
