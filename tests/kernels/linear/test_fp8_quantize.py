"""Activations in FP8: the kernels against their twin, number for number."""

import pytest
import torch
from torch import Tensor

from quire.kernels import reference
from quire.kernels.reference.fp8 import quantize_rows

SHAPES = [(1, 128), (3, 384), (2, 320), (17, 33), (2, 2176)]


def noise(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Groups differ in size by orders of magnitude; a group of zeros, and ties between two e4m3."""
    random = torch.Generator().manual_seed(rows + columns)
    sizes = torch.randn(rows, columns, generator=random).mul_(2).exp_()
    x = torch.randn(rows, columns, generator=random) * sizes
    x[0, :128] = 0
    x[-1, :32] = torch.arange(32) + 0.5
    x[-1, 31] = 448
    return x.to(dtype).to(device)


def same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(found[1], wanted[1])
    assert torch.equal(found[0].float(), wanted[0].float())


@pytest.mark.triton
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("by_group", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_are_quantized_as_by_the_twin(
    rows: int, columns: int, by_group: bool, dtype: torch.dtype, device: torch.device
) -> None:
    from quire.kernels.linear.fp8_quantize import quantize

    x = noise(rows, columns, dtype, device)
    made = quantize(x, by_group=by_group)
    same(made, quantize_rows(x))
    assert made.data.is_contiguous()
    assert made.scale.stride() == (
        (1, -(-rows // 16) * 16) if by_group else (made.scale.shape[1], 1)
    )


@pytest.mark.triton
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_what_stands_before_is_rounded_as_if_it_were_stored(
    rows: int, columns: int, device: torch.device
) -> None:
    """Against the kernels that stand alone, then quantized: the sums are theirs."""
    from quire.kernels.linear import norms
    from quire.kernels.linear.fp8_quantize import rms_norm_quantize

    x = noise(rows, columns, torch.bfloat16, device).clamp(-100, 100)
    weight = 1 + 0.2 * x[0].clamp(-1, 1)
    normed = norms.rms_norm(x, weight, 1e-6)
    made = rms_norm_quantize(x, weight, 1e-6, by_group=True)
    twin = reference.rms_norm(x, weight, 1e-6)
    wide, scale = made.data.float(), made.scale.repeat_interleave(128, 1)[:, :columns]
    # Two trees of one sum of squares: an output may round the other way.
    step = 2**-7 * normed.float().abs() + scale * 2**-10 + normed.float().abs() * 2**-4
    assert ((wide * scale - twin.float()).abs() <= step).all()
    exact = made.scale == quantize_rows(normed)[1]
    assert exact.float().mean() >= 0.5


@pytest.mark.triton
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_silu_mul_is_rounded_as_if_it_were_stored(
    rows: int, columns: int, device: torch.device
) -> None:
    from quire.kernels.linear import norms
    from quire.kernels.linear.fp8_quantize import quantize

    x = noise(rows, 2 * columns, torch.bfloat16, device)
    same(quantize(x, silu=True, by_group=True), quantize_rows(norms.silu_mul(x)))


@pytest.mark.triton
def test_what_is_not_a_number_stays_none(device: torch.device) -> None:
    from quire.kernels.linear.fp8_quantize import quantize

    x = torch.ones(3, 256, dtype=torch.bfloat16, device=device)
    x[0, 5], x[1, 200] = float("nan"), float("inf")
    data, scale = quantize(x)
    wide = data.float() * scale.repeat_interleave(128, 1)
    assert wide[0, :128].isnan().any() and wide[1, 128:].isnan().any()
    assert wide[2].isfinite().all() and wide[0, 128:].isfinite().all()
