"""RMSNorm and SiLU·mul against the twins and fp64."""

import pytest
import torch
from torch import Tensor

from quire.kernels import reference

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def _draw(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    random = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=random).to(dtype).to(device)


def _norm_oracle(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.double()


def _silu_oracle(x: Tensor) -> Tensor:
    gate, up = x.double().chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


def _close(actual: Tensor, wanted: Tensor) -> None:
    """Within one rounding of the result's dtype."""
    step = torch.finfo(actual.dtype).eps
    assert torch.allclose(actual.double(), wanted, rtol=1.01 * step + 1e-6, atol=1e-7 + step * 1e-3)


@pytest.mark.triton
@pytest.mark.parametrize(("dtype", "width"), [(torch.float16, 6400), (torch.bfloat16, 1024)])
def test_squares_are_added_in_one_order_everywhere(
    dtype: torch.dtype, width: int, device: torch.device
) -> None:
    from support.row_squares import row_squares

    x = _draw(16, width, dtype=dtype, device=device)
    wanted = torch.zeros(16, 1 << (width - 1).bit_length(), device=device)
    wanted[:, :width] = x.float().square()
    while wanted.shape[1] > 1:
        wanted = wanted[:, ::2] + wanted[:, 1::2]
    for found in row_squares(x):
        assert torch.equal(found, wanted[:, 0])


@pytest.mark.triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16), (3, 100), (2, 1024), (2, 3, 96), (1, 5120)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    from quire.kernels.linear.norms import rms_norm

    x = _draw(*shape, dtype=dtype, device=device)
    weight = 1 + _draw(shape[-1], dtype=dtype, device=device) * 0.3
    out = rms_norm(x, weight, 1e-6)
    assert out.shape == x.shape
    assert out.dtype == dtype
    _close(out, _norm_oracle(x, weight, 1e-6))


@pytest.mark.triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 200), (2, 2048), (2, 2050), (1, 6144)])
def test_silu_mul(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    from quire.kernels.linear.norms import silu_mul

    x = 3 * _draw(*shape, dtype=dtype, device=device)
    out = silu_mul(x)
    assert out.shape == (shape[0], shape[1] // 2)
    _close(out, _silu_oracle(x))


@pytest.mark.triton
def test_no_rows_need_no_launch(device: torch.device) -> None:
    from quire.kernels.linear.norms import rms_norm, silu_mul

    empty = torch.empty(0, 64, device=device)
    assert rms_norm(empty, torch.ones(64, device=device), 1e-6).shape == (0, 64)
    assert silu_mul(empty).shape == (0, 32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_twins_against_fp64(dtype: torch.dtype) -> None:
    cpu = torch.device("cpu")
    x = _draw(7, 96, dtype=dtype, device=cpu)
    weight = 1 + _draw(96, dtype=dtype, device=cpu)
    _close(reference.rms_norm(x, weight, 1e-5), _norm_oracle(x, weight, 1e-5))
    _close(reference.silu_mul(x), _silu_oracle(x))


@pytest.mark.gpu
@pytest.mark.triton
@pytest.mark.parametrize("width", [1024, 2560, 4096, 5120])
@pytest.mark.parametrize("rows", [1, 256, 16_384])
def test_rms_norm_at_the_models_sizes(width: int, rows: int, device: torch.device) -> None:
    from quire.kernels.linear.norms import rms_norm

    x = _draw(rows, width, dtype=torch.bfloat16, device=device)
    weight = _draw(width, dtype=torch.bfloat16, device=device)
    _close(rms_norm(x, weight, 1e-6), _norm_oracle(x, weight, 1e-6))
