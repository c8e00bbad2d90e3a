"""Keys and values to their slots, with biases and without rotation."""

import pytest
import torch

from quire.kernels import reference

BLOCKS = 5


@pytest.mark.triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("heads", "dim", "block_size"), [((2, 2), 64, 16), ((3, 1), 32, 32), ((13, 13), 96, 16)]
)
def test_kv_write_is_the_twin(
    heads: tuple[int, int], dim: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> None:
    from quire.kernels.attention.kv_write import kv_write

    (q_heads, kv_heads), random = heads, torch.Generator().manual_seed(sum(heads))
    width, tokens = (q_heads + 2 * kv_heads) * dim, 4
    qkv = torch.randn(tokens, width, generator=random).to(dtype).to(device)
    bias = torch.randn(width, generator=random).to(dtype).to(device)
    last = BLOCKS * block_size - 1
    slots = torch.tensor([last, block_size, block_size - 1, 2 * block_size + 5], device=device)
    shape = (BLOCKS, kv_heads, block_size, dim)
    ours = [torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in range(2)]
    theirs = [cache.clone() for cache in ours]
    q = kv_write(qkv, bias, slots, *ours)
    expected = reference.kv_write(qkv.clone(), bias, slots, *theirs)
    assert q.shape == (tokens, q_heads, dim) and torch.equal(q, expected)
    for cache, wanted in zip(ours, theirs, strict=True):
        assert cache.isfinite().sum() == tokens * kv_heads * dim  # and nothing else is written
        assert torch.equal(cache.nan_to_num(), wanted.nan_to_num())


def test_the_twin_puts_each_head_where_it_belongs() -> None:
    qkv = torch.arange(2 * 8 * 4).float().view(2, 32)
    caches = [torch.zeros(3, 2, 4, 4) for _ in range(2)]
    q = reference.kv_write(qkv.clone(), torch.ones(32), torch.tensor([6, 9]), *caches)
    for token, (block, offset) in enumerate(((1, 2), (2, 1))):
        heads = (qkv[token] + 1).view(8, 4)
        assert torch.equal(q[token], heads[:4])
        assert torch.equal(caches[0][block, :, offset], heads[4:6])
        assert torch.equal(caches[1][block, :, offset], heads[6:])


@pytest.mark.triton
def test_what_the_kernels_do_not_support_is_refused(device: torch.device) -> None:
    from quire.kernels.attention.kv_write import kv_write

    cache = torch.zeros(2, 1, 16, 20, device=device)
    qkv, slots = torch.zeros(1, 60, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="head_dim 20 is not supported"):
        kv_write(qkv, torch.zeros(60, device=device), slots, cache, cache)
