"""q/k norm, rotation and KV write in Triton against their twin; copies of blocks."""

import pytest
import torch

from quire.kernels import reference

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

pytestmark = pytest.mark.triton


def angles(positions: int, dim: int, device: torch.device) -> torch.Tensor:
    """A rotary table: [positions, dim] fp32, cosines then sines."""
    frequency = 1e4 ** (-torch.arange(0, dim, 2) / dim)
    angle = torch.arange(positions)[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=1).float().to(device)


def check(
    device: torch.device,
    tokens: int,
    q_heads: int,
    kv_heads: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype,
    **launch: int | bool,
) -> None:
    from quire.kernels.attention.qk_norm_rope import qk_norm_rope_kv_write

    rng = torch.Generator().manual_seed(tokens)
    blocks = -(-tokens // block_size) + 2
    qkv = torch.randn(tokens, (q_heads + 2 * kv_heads) * dim, generator=rng).to(device, dtype)
    weights = [(torch.randn(dim, generator=rng) + 1).to(device, dtype) for _ in range(2)]
    table = angles(300, dim, device)
    positions = torch.randint(0, 300, (tokens,), generator=rng).int().to(device)
    slots = torch.randperm((blocks - 1) * block_size, generator=rng)[:tokens] + block_size
    slots = slots.to(device)
    empty = torch.full((blocks, kv_heads, block_size, dim), float("nan"), dtype=dtype)
    found, wanted = ([empty.to(device).clone(), empty.to(device).clone()] for _ in range(2))
    rest = (*weights, 1e-6, table, positions, slots)
    q = qk_norm_rope_kv_write(qkv, *rest, *found, **launch)
    twin = reference.qk_norm_rope_kv_write(qkv, *rest, *wanted)
    assert q.shape == (tokens, q_heads, dim)
    assert q.is_contiguous()
    # Both round once: they may differ by one step of the dtype where the fp32 values do in bits.
    step = {BF16: 2.0**-7, FP16: 2.0**-10, FP32: 1e-5}[dtype]
    torch.testing.assert_close(q, twin, atol=step, rtol=step)
    torch.testing.assert_close(found[0], wanted[0], atol=step, rtol=step, equal_nan=True)
    torch.testing.assert_close(found[1], wanted[1], atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("tokens", "q_heads", "kv_heads", "dim", "block_size", "dtype"),
    [
        (1, 4, 2, 128, 64, BF16),
        (9, 3, 1, 96, 16, BF16),
        (5, 8, 2, 64, 32, FP32),
        (3, 16, 1, 16, 128, FP16),
        (2, 2, 2, 256, 256, BF16),
    ],
)
def test_as_the_twin(
    device: torch.device,
    tokens: int,
    q_heads: int,
    kv_heads: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype,
) -> None:
    check(device, tokens, q_heads, kv_heads, dim, block_size, dtype)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_heads_a_program_change_nothing(device: torch.device, heads: int) -> None:
    check(device, 3, 8, 4, 64, 16, BF16, heads=heads)


def test_padded_tokens_write_the_null_block_alone(device: torch.device) -> None:
    from quire.kernels.attention.qk_norm_rope import qk_norm_rope_kv_write

    cache = torch.zeros(3, 1, 16, 32, device=device)
    qkv = torch.full((4, 3 * 32), float("nan"), device=device)
    slots = torch.zeros(4, dtype=torch.int64, device=device)
    norm, positions = torch.ones(32, device=device), torch.zeros(4, dtype=torch.int32)
    qk_norm_rope_kv_write(
        qkv, norm, norm, 1e-6, angles(4, 32, device), positions.to(device), slots, cache, cache
    )
    assert not cache[1:].any()
    assert cache[0, 0, 0].isnan().all()


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_blocks_are_copied_whole(device: torch.device, dtype: torch.dtype) -> None:
    from quire.kernels.state.copy_blocks import copy_blocks

    k, v = (torch.randn(5, 9, 3, 16, 96).to(device, dtype) for _ in range(2))
    wanted_k, wanted_v = k.clone(), v.clone()
    source, target = (torch.tensor(ids, device=device) for ids in ([1, 1, 8], [2, 5, 3]))
    copy_blocks(k, v, source, target)
    reference.copy_blocks(wanted_k, wanted_v, source, target)
    assert torch.equal(k, wanted_k)
    assert torch.equal(v, wanted_v)


def test_nothing_to_copy_is_nothing_done(device: torch.device) -> None:
    from quire.kernels.state.copy_blocks import copy_blocks

    cache = torch.randn(3, 2, 1, 16, 16, device=device)
    before = cache.clone()
    none = torch.zeros(0, dtype=torch.int64, device=device)
    copy_blocks(cache, cache, none, none)
    assert torch.equal(cache, before)


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [16, 32, 64, 96, 128, 256])
def test_gpu_sweep(device: torch.device, dim: int) -> None:
    for tokens, q_heads, kv_heads, block_size in (
        (1, 2, 1, 16), (8, 16, 8, 32), (9, 10, 2, 64), (128, 16, 1, 128), (1000, 32, 8, 256),
    ):  # fmt: skip
        for dtype in (BF16, FP16, FP32):
            for pdl in (False, True):
                check(device, tokens, q_heads, kv_heads, dim, block_size, dtype, pdl=pdl)


@pytest.mark.gpu
def test_gpu_offsets_beyond_32_bits(device: torch.device) -> None:
    from quire.kernels.attention.qk_norm_rope import qk_norm_rope_kv_write
    from quire.kernels.state.copy_blocks import copy_blocks

    kv_heads, block_size, dim = 8, 64, 128
    blocks = 2**31 // (kv_heads * block_size * dim) + 8
    k, v = (
        torch.zeros(blocks, kv_heads, block_size, dim, dtype=BF16, device=device) for _ in range(2)
    )
    qkv = torch.randn(1, 32 * dim, device=device).to(BF16)
    norm = torch.ones(dim, dtype=BF16, device=device)
    slot = torch.tensor([(blocks - 1) * block_size + 5], device=device)
    position = torch.tensor([7], dtype=torch.int32, device=device)
    qk_norm_rope_kv_write(qkv, norm, norm, 1e-6, angles(300, dim, device), position, slot, k, v)
    assert torch.equal(v[blocks - 1, :, 5], qkv.view(32, dim)[24:])
    assert torch.count_nonzero(v[:-1]) == 0
    last = torch.tensor([blocks - 1], device=device)
    copy_blocks(k[None], v[None], last, last - 2)
    assert torch.equal(k[blocks - 3], k[blocks - 1])
    assert torch.equal(v[blocks - 3], v[blocks - 1])
