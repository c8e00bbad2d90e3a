"""LayerNorm and GELU, with the biases before them, against the twins and fp64."""

import math

import pytest
import torch
from torch import Tensor

from quire.kernels import reference

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def _draw(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(*shape, generator=random).to(dtype).to(device)


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return centred * scale * weight.double() + bias.double()


def _gelu(x: Tensor) -> Tensor:
    """As GPT-2's authors write it."""
    wide = x.double()
    return 0.5 * wide * (1 + torch.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))


def _close(actual: Tensor, wanted: Tensor) -> None:
    """Within one rounding of the result's dtype, and of fp32 sums where numbers cancel."""
    step = torch.finfo(actual.dtype).eps
    assert torch.allclose(actual.double(), wanted, rtol=1.01 * step + 1e-6, atol=2e-6)


def test_the_twins_keep_their_definitions() -> None:
    x = 3 + 2 * _draw(5, 96, dtype=torch.float32, device=torch.device("cpu"))
    weight, bias, add = (_draw(96, dtype=x.dtype, device=x.device, seed=seed) for seed in (1, 2, 3))
    _close(reference.layer_norm(x, weight, bias, 1e-5), _norm(x, weight, bias, 1e-5))
    kept, wanted = x.clone(), x + add
    _close(reference.layer_norm(x, weight, bias, 1e-5, add=add), _norm(wanted, weight, bias, 1e-5))
    assert torch.equal(x, wanted) and not torch.equal(x, kept)
    _close(reference.gelu_new(3 * kept, add), _gelu(3 * kept + add))


@pytest.mark.triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("shape", [(1, 16), (3, 100), (2, 1600)])
def test_layer_norm(
    shape: tuple[int, int], adds: bool, dtype: torch.dtype, device: torch.device
) -> None:
    from quire.kernels.linear.layer_norm import layer_norm

    x = 2 + 3 * _draw(*shape, dtype=dtype, device=device)
    weight, bias, add = (
        _draw(shape[1], dtype=dtype, device=device, seed=seed) for seed in (1, 2, 3)
    )
    before = (x + add) if adds else x.clone()
    out = layer_norm(x, weight, bias, 1e-5, add=add if adds else None)
    assert out.dtype == dtype and torch.equal(x, before)
    _close(out, _norm(before, weight, bias, 1e-5))


@pytest.mark.triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 4), (3, 200), (2, 1100)])
def test_gelu(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    from quire.kernels.linear.layer_norm import gelu_new

    x = 4 * _draw(*shape, dtype=dtype, device=device)
    x[0, :3] = torch.tensor([-60.0, 60.0, 0.0])  # where a power of e is out of range
    bias = _draw(shape[1], dtype=dtype, device=device, seed=1)
    out = gelu_new(x, bias)
    assert out.isfinite().all()
    _close(out, _gelu(x + bias))


@pytest.mark.triton
def test_no_rows_need_no_launch(device: torch.device) -> None:
    from quire.kernels.linear.layer_norm import gelu_new, layer_norm

    empty, one = torch.empty(0, 64, device=device), torch.ones(64, device=device)
    assert layer_norm(empty, one, one, 1e-5, add=one).shape == (0, 64)
    assert gelu_new(empty, one).shape == (0, 64)
