"""Experts with FP8 weights in Triton against their twin, around the borders of blocks."""

import dataclasses

import pytest
import torch
from torch import Tensor

from quire.kernels import reference
from quire.kernels.experts.tiles import Mix, Tile
from quire.kernels.weight import Weight

pytestmark = pytest.mark.triton

TILE = Tile(64, 128, 2, 4, swap=True)
SWAPPED = Mix(True, 16, TILE, dataclasses.replace(TILE, block_n=128))
BOXED = dataclasses.replace(TILE, boxed=True)
WAYS = {
    "sorted": SWAPPED,
    "through descriptors": dataclasses.replace(SWAPPED, gate_up=BOXED, down=BOXED),
    "rows first": Mix(True, 64, *[dataclasses.replace(TILE, swap=False)] * 2),
    "in turns": Mix(True, 64, TILE, dataclasses.replace(BOXED, block_n=128, swap=False, turns=2)),
    "unsorted": dataclasses.replace(SWAPPED, is_sorted=False),
}


def noise(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype).to(device)


def stacked(device: torch.device, count: int, rows: int, columns: int) -> Weight:
    """Experts whose blocks differ in scale."""
    wide = noise(device, count, rows, columns, dtype=torch.float32) * columns**-0.5
    wide *= torch.arange(1, rows + 1, device=device)[None, :, None] / rows
    made = [reference.quantize_blocks(one) for one in wide]
    scales = [one.scale for one in made if one.scale is not None]
    return Weight(torch.stack([one.data for one in made]), torch.stack(scales))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("width", [256, 208, 384])
def test_what_is_made_is_what_the_twin_makes(way: str, width: int, device: torch.device) -> None:
    """At a width within a block, and an inner width of two; one tile too many for 16 rows, and one
    block of columns more than turns."""
    from quire.kernels.experts.mixing import run_fp8

    if width != 256 and way != {208: "sorted", 384: "in turns"}[width]:
        pytest.skip("one way shows the border")
    experts = torch.tensor([[2, 0], [2, 3], [0, 2]] * (1 if way == "unsorted" else 6))
    x = noise(device, len(experts), width)
    gate_up, down = stacked(device, 4, 512, width), stacked(device, 4, width, 256)
    weights = noise(device, *experts.shape, dtype=torch.float32).abs()
    residual = noise(device, len(experts), width) / 4
    experts = experts.to(device)
    around = (gate_up, down, experts, weights)
    exact = reference.mix_experts_fp8(x.float(), *around, residual=residual.float())
    twin = reference.mix_experts_fp8(x, *around, residual=residual)
    made = run_fp8(WAYS[way], x, *around, residual=residual.clone())
    off, twin_off = ((one.float() - exact).norm() / exact.norm() for one in (made, twin))
    assert off <= 1.5 * twin_off < 0.02


@pytest.mark.parametrize("way", ["sorted", "rows first"])
def test_a_token_alone_is_the_same_bits_as_beside_others(way: str, device: torch.device) -> None:
    from quire.kernels.experts.mixing import run_fp8

    x, experts = noise(device, 18, 128), torch.tensor([[1, 0], [2, 1], [0, 2]] * 6).to(device)
    gate_up, down = stacked(device, 3, 256, 128), stacked(device, 3, 128, 128)
    weights = noise(device, 18, 2, dtype=torch.float32).abs()
    together = run_fp8(WAYS[way], x, gate_up, down, experts, weights)
    alone = run_fp8(
        WAYS["unsorted"], x[17:], gate_up, down, experts[17:].contiguous(), weights[17:]
    )
    assert torch.equal(alone[0], together[17])
