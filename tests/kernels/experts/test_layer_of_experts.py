"""A layer of the shape 30B-A3B on the device, by the tiles that are chosen there: too large for the
interpreter."""

import pytest
import torch
from torch import Tensor

from quire.kernels import reference
from quire.kernels.weight import Weight

pytestmark = [pytest.mark.triton, pytest.mark.gpu]

HIDDEN, INNER, COUNT, PER_TOKEN = 2048, 768, 128, 8
ROWS = (1, 2, 3, 16, 17, 64, 65, 200, 500, 1200, 2048)  # every choice of tiles, and of sorting


def noise(device: torch.device, *shape: int, seed: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).bfloat16()


class Layer:
    """Weights, and tokens with their residual."""

    def __init__(self, device: torch.device, *, fp8: bool) -> None:
        self.router = noise(device, COUNT, HIDDEN, seed=1) / 8
        gate_up = noise(device, COUNT, 2 * INNER, HIDDEN, seed=2) / 45
        down = noise(device, COUNT, HIDDEN, INNER, seed=3) / 28
        self.weights = [narrow(one) if fp8 else one for one in (gate_up, down)]
        self.x = noise(device, ROWS[-1], HIDDEN, seed=4)
        self.residual = noise(device, ROWS[-1], HIDDEN, seed=5)
        self.fp8 = fp8

    def made(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """The chosen experts, their weights, and what comes of it."""
        from quire.kernels.experts import mixing, routing

        x, residual = self.x[rows], self.residual[rows].clone()
        chosen = routing.route(x, self.router, PER_TOKEN, renormalise=True)
        mix = mixing.mix_experts_fp8 if self.fp8 else mixing.mix_experts
        return *chosen, mix(x, *self.weights, *chosen, residual=residual)  # type: ignore[arg-type]


def narrow(weight: Tensor) -> Weight:
    made = [reference.quantize_blocks(one) for one in weight]
    scales = [one.scale for one in made if one.scale is not None]
    return Weight(torch.stack([one.data for one in made]), torch.stack(scales))


@pytest.mark.parametrize("fp8", [False, True])
def test_a_layer_is_its_twin_s_and_each_row_the_same_bits_in_any_number(
    fp8: bool, device: torch.device
) -> None:
    layer = Layer(device, fp8=fp8)
    experts, weights, whole = layer.made(slice(0, ROWS[-1]))
    few = slice(0, 64)
    twin = reference.mix_experts_fp8 if fp8 else reference.mix_experts
    expected = twin(
        layer.x[few].float(),
        *(one if fp8 else one.float() for one in layer.weights),  # type: ignore[arg-type]
        experts[few],
        weights[few],
        residual=layer.residual[few].float(),
    )
    off = (whole[few].float() - expected).norm() / expected.norm()
    assert off < (0.01 if fp8 else 0.004)
    for rows in ROWS:
        for part in (slice(0, rows), slice(ROWS[-1] - rows, ROWS[-1])):
            found = layer.made(part)
            assert torch.equal(found[0], experts[part]), rows
            assert torch.equal(found[1], weights[part]), rows
            assert torch.equal(found[2], whole[part]), rows


@pytest.mark.parametrize("fp8", [False, True])
def test_a_layer_of_one_row_is_its_twin_s(fp8: bool, device: torch.device) -> None:
    """The launches that are chosen, one after another as dependents too: downs are then fetched
    while gates and ups are still multiplied."""
    from quire.kernels.triton_ops import TritonOps

    layer = Layer(device, fp8=fp8)
    wide = layer.weights if fp8 else [one.float() for one in layer.weights]  # type: ignore[union-attr]
    held = [one if fp8 else Weight(one) for one in layer.weights]  # type: ignore[arg-type]
    norm = noise(device, HIDDEN, seed=6).abs()
    for ops in (TritonOps.on(device), TritonOps.on(device, pdl=True)):
        for row in range(32):
            x = layer.x[row : row + 1].clone()
            y = reference.rms_norm(x, norm, 1e-6)
            chosen = reference.route(y, layer.router, PER_TOKEN, renormalise=True)
            twin = reference.mix_experts_fp8 if fp8 else reference.mix_experts
            expected = twin(y.float(), *wide, *chosen, residual=x.float())  # type: ignore[arg-type]
            made = ops.mix_row(
                x,
                norm,
                1e-6,
                layer.router,
                *held,
                PER_TOKEN,
                renormalise=True,  # type: ignore[arg-type]
            )
            assert made is not None
            off = (made.float() - expected).norm() / expected.norm()
            assert off < (0.02 if fp8 else 0.01), row
