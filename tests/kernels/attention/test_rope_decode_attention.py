"""Norm, rotation, cache write and decode attention as one kernel: the bits of the two kernels."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from quire.kernels import reference

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
LEVELS = (0, 1, 2)
SPLITS: list[dict[str, Any]] = [*({"level": n} for n in LEVELS), {"level": 2, "ahead": False}]
POINTERS, BOXES = ([split | {"tma": tma} for split in SPLITS] for tma in (False, True))
WAYS = [*POINTERS, *BOXES]
STEP = {BF16: 2.0**-6, FP16: 2.0**-9, FP32: 1e-4}

pytestmark = pytest.mark.triton


@dataclass
class Decode:
    """The arguments of a decode step, the cache poisoned where the new tokens are to be written."""

    qkv: Tensor
    q_norm: Tensor
    k_norm: Tensor
    angles: Tensor
    positions: Tensor
    slots: Tensor
    k_cache: Tensor
    v_cache: Tensor
    rows: tuple[Tensor, Tensor, float, int]

    def fresh(self) -> tuple[Any, ...]:
        """What goes into the cache write, with a cache of its own."""
        inputs = (self.qkv, self.q_norm, self.k_norm, 1e-6, self.angles, self.positions, self.slots)
        return (*inputs, self.k_cache.clone(), self.v_cache.clone())


@pytest.fixture
def decode(paged: Any) -> Any:
    def build(
        contexts: list[int],
        *,
        group: int,
        kv_heads: int,
        block_size: int,
        dim: int,
        dtype: torch.dtype,
    ) -> Decode:
        shape = {"kv_heads": kv_heads, "block_size": block_size, "dim": dim, "dtype": dtype}
        cache = paged(contexts, **shape)
        device = cache.k_cache.device
        rng = torch.Generator().manual_seed(len(contexts))
        heads = (group + 2) * kv_heads
        qkv = torch.randn(len(contexts), heads * dim, generator=rng).to(device, dtype)
        norms = [(torch.randn(dim, generator=rng) * 0.1 + 1).to(device, dtype) for _ in range(2)]
        frequency = 1e4 ** (-torch.arange(0, dim, 2) / dim)
        angle = torch.arange(max(1, *contexts))[:, None] * frequency
        table = torch.cat((angle.cos(), angle.sin()), dim=1).float().to(device)
        last = (cache.context_lens - 1).clamp(min=0)
        blocks = cache.block_tables.gather(1, (last // block_size).long()[:, None])[:, 0]
        slots = blocks.long() * block_size + last % block_size
        for held in (cache.k_cache, cache.v_cache):
            held[blocks.long(), :, last.long() % block_size] = float("nan")
        rows = (cache.block_tables, cache.context_lens, dim**-0.5, max(1, *contexts))
        return Decode(qkv, *norms, table, last, slots, cache.k_cache, cache.v_cache, rows)

    return build


def same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, where a NaN is as good as another."""
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    return True


def check(step: Decode, **launch: Any) -> Tensor:
    """One kernel against two in bits, and against the twin; result and cache."""
    from quire.kernels.attention.decode import decode_attention, rope_decode_attention
    from quire.kernels.attention.qk_norm_rope import qk_norm_rope_kv_write

    fused, apart, twin = step.fresh(), step.fresh(), step.fresh()
    out = rope_decode_attention(*fused, *step.rows, **launch)
    q = qk_norm_rope_kv_write(*apart)
    assert same(out, decode_attention(q, *apart[-2:], *step.rows, **launch))
    assert same(fused[-2], apart[-2])
    assert same(fused[-1], apart[-1])
    near = STEP[step.qkv.dtype]
    wanted = reference.rope_decode_attention(*twin, *step.rows)
    torch.testing.assert_close(out, wanted, atol=near, rtol=near)
    torch.testing.assert_close(fused[-2], twin[-2], atol=near, rtol=near, equal_nan=True)
    assert same(fused[-1], twin[-1])
    return out


@pytest.mark.parametrize(
    ("dim", "group", "kv_heads", "block_size", "dtype", "level"),
    [
        (16, 1, 2, 16, FP32, 0),
        (32, 5, 1, 32, FP16, 1),
        (64, 2, 2, 16, BF16, 2),
        pytest.param(96, 3, 1, 32, BF16, 0, marks=pytest.mark.long),
        (96, 2, 1, 128, FP32, 2),
        (128, 4, 1, 64, BF16, 1),
        pytest.param(128, 16, 1, 256, FP16, 0, marks=pytest.mark.long),
        (256, 2, 1, 64, BF16, 2),
    ],
)
def test_as_two_kernels_and_as_the_twin(
    decode: Any,
    dim: int,
    group: int,
    kv_heads: int,
    block_size: int,
    dtype: torch.dtype,
    level: int,
) -> None:
    from quire.kernels.attention.decode_launch import tile_tokens

    tile = tile_tokens(dim, dtype)
    contexts = sorted({1, block_size, block_size + 1, tile, tile + 1, 257})
    step = decode(
        contexts, group=group, kv_heads=kv_heads, block_size=block_size, dim=dim, dtype=dtype
    )
    check(step, level=level)


@pytest.mark.parametrize("level", [0, 2])
def test_exact_mode_has_the_bits_of_two_kernels(decode: Any, level: int) -> None:
    for dtype in (BF16, FP32):
        step = decode([1, 64, 65, 300], group=3, kv_heads=1, block_size=64, dim=32, dtype=dtype)
        check(step, exact=True, level=level)


@pytest.mark.parametrize("exact", [False, True])
def test_beside_a_prompt_no_bit_of_either_changes(decode: Any, exact: bool) -> None:
    """Each kernel norms, rotates and writes its own tokens: as where one does that for all."""
    from quire.engine.model.forward_batch import ForwardBatch
    from quire.engine.model.layers.attention import attend, paged_attention
    from quire.kernels.triton_ops import TritonOps

    # The last row's prompt is of five tokens, in a context of 70.
    step = decode([33, 1, 70], group=2, kv_heads=2, block_size=16, dim=32, dtype=BF16)
    tables, contexts, scale, longest = step.rows
    places = torch.arange(65, 70, device=contexts.device)
    slots = tables[2, places // 16].long() * 16 + places % 16
    positions = torch.cat((step.positions[:2], places.to(step.positions.dtype)))
    qkv = torch.cat((step.qkv[:2], step.qkv[2:].repeat(5, 1) * places[:, None].to(BF16) / 64))
    batch = ForwardBatch(
        token_ids=positions,
        positions=positions,
        slot_mapping=torch.cat((step.slots[:2], slots)),
        context_lens=contexts,
        block_tables=tables,
        prefill_start_loc=torch.tensor([0, 5], dtype=torch.int32, device=contexts.device),
        logits_rows=None,
        num_decode_rows=2,
        max_query_len=5,
        max_context_len=longest,
    )
    ops = TritonOps.on(contexts.device, pdl=False, exact=exact)
    norms = (step.q_norm, step.k_norm, 1e-6, step.angles)
    ours, theirs = step.fresh()[-2:], step.fresh()[-2:]
    found = paged_attention(ops, qkv, *norms, *ours, batch, scale)
    q = ops.qk_norm_rope_kv_write(qkv, *norms, positions, batch.slot_mapping, *theirs)
    assert isinstance(found, Tensor) and found.isfinite().all()
    assert same(found, attend(ops, q, *theirs, batch, scale))
    assert all(map(same, ours, theirs))


@pytest.mark.long
def test_at_every_edge_of_the_tree(decode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who writes the last token is found right where a tile, a unit and a long split begin."""
    from quire.kernels.attention import decode_launch as module

    monkeypatch.setattr(module, "UNIT", 32)
    monkeypatch.setattr(module, "LONG", 4)
    monkeypatch.setattr(module, "MAX_SPLITS", 16)
    contexts = [16, 17, 32, 33, 128, 129, 257, 512, 513]
    for dtype, ways in ((FP32, POINTERS), (FP16, [POINTERS[0], *BOXES])):
        step = decode(contexts, group=2, kv_heads=1, block_size=32, dim=16, dtype=dtype)
        first, *others = [check(step, tile=16, **way) for way in ways]
        assert all(same(first, other) for other in others)


@pytest.mark.parametrize("level", LEVELS)
def test_an_empty_context_gives_zeros(decode: Any, level: int) -> None:
    step = decode([40, 0], group=2, kv_heads=2, block_size=16, dim=32, dtype=BF16)
    assert not check(step, level=level)[1].any()


@pytest.mark.parametrize("level", LEVELS)
def test_padded_rows_touch_the_null_block_alone(decode: Any, level: int) -> None:
    from quire.kernels.attention.decode import rope_decode_attention

    step = decode([33, 1, 1, 1], group=2, kv_heads=2, block_size=16, dim=32, dtype=FP32)
    real = rope_decode_attention(*step.fresh(), *step.rows, level=level)[0]
    for padded in (step.rows[0], step.slots):
        padded[1:] = 0
    step.qkv[1:] = 1e3
    arguments = step.fresh()
    out = rope_decode_attention(*arguments, *step.rows, level=level)
    assert same(out[0], real)
    for before, after in zip((step.k_cache, step.v_cache), arguments[-2:], strict=True):
        block, offset = step.slots[0] // 16, step.slots[0] % 16
        after[block, :, offset] = before[block, :, offset]
        assert same(after[1:], before[1:])
        assert same(after[0, :, 1:], before[0, :, 1:])


def test_a_view_of_qkv_and_a_buffer_given(decode: Any) -> None:
    from quire.kernels.attention.decode import rope_decode_attention

    step = decode([20, 70], group=2, kv_heads=1, block_size=16, dim=32, dtype=FP32)
    wanted = check(step)
    step.qkv = torch.cat((step.qkv, step.qkv[:, :7]), dim=1)[:, :-7]
    buffer = torch.full_like(wanted, float("nan"))
    assert rope_decode_attention(*step.fresh(), *step.rows, out=buffer) is buffer
    assert same(buffer, wanted)


def test_what_is_not_supported_is_named(decode: Any) -> None:
    from quire.kernels.attention.decode import rope_decode_attention

    step = decode([5], group=17, kv_heads=1, block_size=16, dim=16, dtype=FP32)
    with pytest.raises(ValueError, match="17 query heads"):
        rope_decode_attention(*step.fresh(), *step.rows)


@pytest.mark.gpu
@pytest.mark.parametrize("pdl", [False, True])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize(
    ("dim", "group", "kv_heads", "block_size"),
    [
        (16, 5, 2, 16), (32, 1, 2, 32), (64, 2, 8, 128), (96, 3, 2, 64), (128, 2, 8, 64),
        (128, 4, 8, 16), (128, 16, 2, 256), (256, 2, 2, 64),
    ],
)  # fmt: skip
def test_gpu_sweep(
    decode: Any, dim: int, group: int, kv_heads: int, block_size: int, dtype: torch.dtype, pdl: bool
) -> None:
    contexts = [0, 1, 2, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513]
    contexts += [1031, 2047, 2048, 2049, 3000, 8192, 8193]
    step = decode(
        contexts, group=group, kv_heads=kv_heads, block_size=block_size, dim=dim, dtype=dtype
    )
    first, *others = [check(step, pdl=pdl, **way) for way in WAYS]
    assert all(same(first, other) for other in others)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 8, 9, 128, 129, 300])
def test_gpu_at_every_launch_shape_of_the_write(decode: Any, rows: int) -> None:
    """The separate kernel takes other tiles for few tokens than for many: the bits are the same."""
    for dtype in (BF16, FP32):
        for dim in (64, 128):
            contexts = [1 + 97 * row % 700 for row in range(rows)]
            check(decode(contexts, group=4, kv_heads=8, block_size=64, dim=dim, dtype=dtype))


@pytest.mark.gpu
def test_gpu_a_chain_of_layers_and_steps(decode: Any) -> None:
    """Captured and replayed, each reads what those before it wrote, dependent launch or not."""
    from quire.kernels.attention.decode import rope_decode_attention

    step = decode([70, 300, 2050, 1], group=2, kv_heads=8, block_size=64, dim=128, dtype=BF16)
    wanted = check(step)
    for way in (WAYS[0], *WAYS[-2:]):
        for pdl in (False, True):
            arguments = step.fresh()
            rope_decode_attention(*arguments, *step.rows, pdl=pdl, **way)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(3):
                    out = rope_decode_attention(*arguments, *step.rows, pdl=pdl, **way)
            for _ in range(5):
                graph.replay()
            assert same(out, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("fused", [False, True])
def test_gpu_what_is_asked_for_ahead_never_holds_the_newest_token(decode: Any, fused: bool) -> None:
    """Written within the chain, and no number before: read too soon, it would show."""
    from quire.kernels.attention.decode import decode_attention, rope_decode_attention
    from quire.kernels.attention.qk_norm_rope import qk_norm_rope_kv_write
    from quire.kernels.linear.norms import rms_norm

    contexts = [1, 60, 64, 65, 192, 193, 256, 257, 319, 320, 321, 383, 384, 385, 449, 1031, 2048]
    contexts += [2049, 2100, 2368, 2369, 2433]
    step = decode(contexts, group=2, kv_heads=8, block_size=64, dim=128, dtype=BF16)
    weight = torch.ones_like(step.qkv[0])
    inputs, caches = step.fresh()[1:-2], step.fresh()[-2:]
    places = (step.slots // 64, slice(None), step.slots % 64)
    nothing = torch.full_like(caches[0][places], float("nan"))

    def run(pdl: bool, **way: Any) -> Tensor:
        for cache in caches:
            cache[places] = nothing
        arguments = (rms_norm(step.qkv, weight, 1e-6, pdl=pdl), *inputs, *caches)
        if fused:
            return rope_decode_attention(*arguments, *step.rows, pdl=pdl, **way)
        q = qk_norm_rope_kv_write(*arguments, pdl=pdl)
        return decode_attention(q, *caches, *step.rows, pdl=pdl, **way)

    wanted = run(False, **WAYS[0])
    assert wanted.isfinite().all()
    for way in (POINTERS[2], BOXES[2]):
        run(True, **way)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run(True, **way)
        for _ in range(20):
            graph.replay()
            assert same(out, wanted)


@pytest.mark.parametrize("warps", [1, 2])
def test_narrow_is_what_quantizing_behind_it_gives(
    decode: Any, warps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of contexts in one piece, and of several that the last to come merges; heads as columns have
    the bits of heads as rows."""
    from quire.kernels.attention import decode_launch as module
    from quire.kernels.attention.decode import rope_decode_attention
    from quire.kernels.linear.fp8_quantize import quantize

    monkeypatch.setattr(module, "UNIT", 64)
    monkeypatch.setattr(module, "LONG", 2)
    wide = decode([1, 65, 300], group=3, kv_heads=2, block_size=64, dim=128, dtype=BF16)
    caches = (cache.to(torch.float8_e4m3fn) for cache in (wide.k_cache, wide.v_cache))
    step = replace(wide, **dict(zip(("k_cache", "v_cache"), caches, strict=True)))
    how = {"level": 2, "ahead": False, "num_warps": warps}
    plain = rope_decode_attention(*step.fresh(), *step.rows, narrow=True, **how)
    assert isinstance(plain, Tensor)  # of few rows
    monkeypatch.setattr(module, "ALONE", 3)
    monkeypatch.setattr(module, "_COLUMNS", 3)
    if not module._EIGHT:
        pytest.skip("heads are columns from Triton 3.6 on")
    columns = rope_decode_attention(*step.fresh(), *step.rows, **how)
    near = 0.0 if columns.is_cuda else STEP[BF16]  # numpy adds up otherwise than the matrix units
    torch.testing.assert_close(columns, plain, atol=near, rtol=near)
    made = rope_decode_attention(*step.fresh(), *step.rows, narrow=True, **how)
    wanted = quantize(columns.flatten(1), by_group=True)
    assert torch.equal(made.data.float(), wanted.data.float())
    assert torch.equal(made.scale, wanted.scale)
    assert made.scale.stride() == wanted.scale.stride()


@pytest.mark.parametrize("warps", [1, 2])
@pytest.mark.parametrize(
    "contexts",
    [
        pytest.param((1, 64, 65, 129), id="few"),
        pytest.param(range(1, 321), marks=pytest.mark.gpu, id="all"),
    ],
)
def test_heads_as_columns_have_the_bits_of_rows_at_every_length(
    decode: Any, warps: int, contexts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context's last tile may come while the others are summed, and be almost empty. Both are
    held against the twin too, which tells which of them is wrong."""
    from quire.kernels.attention import decode_launch as module
    from quire.kernels.attention.decode import rope_decode_attention

    if not module._EIGHT:
        pytest.skip("heads are columns from Triton 3.6 on")
    wide = decode([*contexts], group=3, kv_heads=2, block_size=64, dim=128, dtype=BF16)
    caches = (cache.to(torch.float8_e4m3fn) for cache in (wide.k_cache, wide.v_cache))
    step = replace(wide, **dict(zip(("k_cache", "v_cache"), caches, strict=True)))
    twin = reference.rope_decode_attention(*step.fresh(), *step.rows)
    found = []
    for least in (1 << 30, 1):  # heads as rows, as columns
        monkeypatch.setattr(module, "_COLUMNS", least)
        how = {"level": 2, "ahead": False, "num_warps": warps}
        found.append(rope_decode_attention(*step.fresh(), *step.rows, **how))
        torch.testing.assert_close(found[-1], twin, atol=STEP[BF16], rtol=STEP[BF16])
    if twin.is_cuda:  # numpy adds up otherwise than the matrix units
        assert torch.equal(*found)
