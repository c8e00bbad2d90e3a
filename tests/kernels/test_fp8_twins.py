"""The PyTorch twins of FP8 against the format's definition, written out in support."""

import pytest
import torch
from support import fp8_checkpoints as definition
from torch import Tensor

from quire.kernels import reference
from quire.kernels.reference.fp8 import quantize_rows, widen_blocks
from quire.kernels.weight import Weight


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Numbers over six orders of magnitude, so that blocks and groups differ in scale."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randn(shape, generator=generator).mul_(2).exp_()
    return torch.randn(shape, generator=generator) * sizes


@pytest.mark.parametrize("shape", [(128, 128), (256, 384), (1, 1), (127, 129), (130, 255)])
def test_blocks_are_quantized_as_defined(shape: tuple[int, int]) -> None:
    weight = noise(*shape)
    data, scale = reference.quantize_blocks(weight)
    expected, scales = definition.quantized(weight)
    assert scale is not None and data.dtype == torch.float8_e4m3fn
    assert torch.equal(scale, scales) and torch.equal(data.float(), expected.float())
    assert torch.equal(widen_blocks(Weight(data, scale)), definition.widened(data, scale))


def test_a_block_and_a_group_of_zeros_stay_zero() -> None:
    weight, x = noise(256, 256), noise(3, 256)
    weight[:128, 128:] = 0
    x[1, :128] = 0
    made = reference.quantize_blocks(weight)
    assert made.scale is not None and made.scale[0, 1] == 1
    assert not widen_blocks(made)[:128, 128:].any()
    data, scale = quantize_rows(x)
    assert not data[1, :128].float().any() and scale[1, 0] == 1
    assert reference.linear_fp8(x, made).isfinite().all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 128), (5, 320), (64, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_the_one_defined(rows: int, columns: int, dtype: torch.dtype) -> None:
    """In fp32 up to the order of the sum, in bf16 up to one rounding more."""
    x, weight = noise(rows, columns, seed=1).to(dtype), noise(1300, columns, seed=2)
    made = reference.quantize_blocks(weight)
    assert made.scale is not None
    wide = definition.widened(made.data, made.scale).double()
    expected = definition.as_taken(x).double() @ wide.T
    scale = definition.as_taken(x).double().abs() @ wide.abs().T
    y = reference.linear_fp8(x, made)
    assert y.dtype == dtype
    step = 1e-6 if dtype == torch.float32 else 2**-8
    assert ((y.double() - expected).abs() <= 1e-6 * scale + step * expected.abs()).all()


def test_what_stands_around_a_product_is_as_around_any() -> None:
    """Norm before, SiLU and residual behind: as `linear` has them, on what the format means."""
    x, residual, norm = noise(4, 256).clamp(-3, 3), noise(4, 128), noise(256).abs()
    made = reference.quantize_blocks(noise(256, 256, seed=3) / 50)
    normed = definition.as_taken(reference.rms_norm(x, norm, 1e-6))
    expected = reference.linear(normed, widen_blocks(made), silu=True)
    y = reference.linear_fp8(x, made, norm_weight=norm, eps=1e-6, silu=True)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    plain = reference.linear_fp8(x, Weight(made.data[:128], made.scale[:1]))  # type: ignore[index]
    added = reference.linear_fp8(
        x,
        Weight(made.data[:128], made.scale[:1]),
        residual=residual,  # type: ignore[index]
    )
    torch.testing.assert_close(added, residual + plain)


@pytest.mark.parametrize("experts", [[[2], [2], [2]], [[0, 1], [1, 0], [0, 3]]])
def test_experts_are_mixed_as_defined(experts: list[list[int]]) -> None:
    x, chosen = noise(3, 256).clamp(-3, 3), torch.tensor(experts)
    weights = noise(*chosen.shape).abs()
    gate_up, down = (
        [reference.quantize_blocks(noise(*shape, seed=index) / 50) for index in range(4)]
        for shape in ((256, 256), (256, 128))
    )
    stacked = [
        Weight(*(torch.stack([part[side] for part in parts]) for side in (0, 1)))  # type: ignore[misc]
        for parts in (gate_up, down)
    ]
    mixed = reference.mix_experts_fp8(x, *stacked, chosen, weights)
    expected = torch.zeros(3, 256)
    for token, (row, shares) in enumerate(zip(experts, weights, strict=True)):
        for expert, share in zip(row, shares, strict=True):
            taken = definition.as_taken(x[token : token + 1])
            gate, up = (taken @ widen_blocks(gate_up[expert]).T).chunk(2, dim=-1)
            inner = definition.as_taken(torch.nn.functional.silu(gate) * up)
            expected[token] += share * (inner @ widen_blocks(down[expert]).T)[0]
    torch.testing.assert_close(mixed, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
