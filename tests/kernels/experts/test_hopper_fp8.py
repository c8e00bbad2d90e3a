"""FP8 experts of many rows by the kernel of sm_90: which take it, and its bits."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from support.recorded_ops import recorded

from quire.kernels import support
from quire.kernels.experts import mixing, tiles
from quire.kernels.experts.sorting import Order
from quire.kernels.weight import Weight

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn


pytestmark = pytest.mark.usefixtures("hopper")


def layer(
    rows: int = 4096, hidden: int = 2048, inner: int = 768, dtype: torch.dtype = BF16
) -> tuple[Tensor, Weight, Weight]:
    """Rows, and experts of which they take 8."""

    def weight(lines: int, width: int) -> Weight:
        scale = torch.empty(128, -(-lines // 128), -(-width // 128), device="meta")
        return Weight(torch.empty(128, lines, width, dtype=E4M3, device="meta"), scale)

    x = torch.empty(rows, hidden, dtype=dtype, device="meta")
    return x, weight(2 * inner, hidden), weight(hidden, inner)


def taken(*sizes: int, **others: Any) -> bool:
    return mixing.fp8_mix(*layer(*sizes, **others), 8).specialised


def test_many_rows_of_whole_blocks_take_it_on_sm_90(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken() and taken(hidden=4096, inner=128)
    assert not taken(1536) and taken(1537)
    assert not taken(hidden=2048 + 64) and not taken(inner=768 + 64)
    assert not taken(dtype=torch.float32)
    support.assume((10, 0), support.HOPPER_SHARED, "another")
    assert not taken()
    support.assume((9, 0), support.HOPPER_SHARED, support.HOME_CARD)
    monkeypatch.setattr("triton.__version__", support.HOPPER_TRITON[1])
    assert not taken()


def test_tiles_are_listed_as_high_as_the_kernel_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    hopper_fp8 = pytest.importorskip("quire.kernels.experts.hopper_fp8")
    listed: dict[bool, int] = {}

    def noted(_x: object, _w: object, _out: Tensor, order: Order, _per: int, *, silu: bool) -> None:
        listed[silu] = (order.tiles if silu else order.down_tiles).shape[1]

    monkeypatch.setattr(hopper_fp8, "grouped", noted)
    x, *weights = layer()
    experts = torch.empty(len(x), 8, dtype=torch.int64, device="meta")
    with recorded():
        mixing.mix_experts_fp8(x, *weights, experts, experts.float())
    pairs = experts.numel()
    assert listed == {
        silu: tiles.most_tiles(pairs, 128, 64 * n) for silu, n in tiles.GROUPS.items()
    }


def spread(rows: int, per_token: int, count: int, how: str, generator: torch.Generator) -> Tensor:
    """Which experts tokens take: chance's, those of all the same ones, or so many that tiles end
    at, before and behind their borders."""
    scores = torch.rand(rows, count, generator=generator, device="cuda")
    if how == "one":
        scores[:, :per_token] += 1
    if how == "borders":
        for expert, most in enumerate((63, 64, 65, 127, 128, 129, 1, 0)):
            scores[:, expert] = -1
            scores[:most, expert] = 2
    return scores.argsort(1, descending=True)[:, :per_token].contiguous()


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["chance", "one", "borders"])
@pytest.mark.parametrize(
    ("rows", "hidden", "inner", "count", "per_token", "dtype"),
    [(1537, 2048, 768, 128, 8, BF16), (300, 256, 128, 20, 2, torch.float16)],
)
def test_gpu_the_kernel_of_sm_90_changes_no_bit(
    rows: int, hidden: int, inner: int, count: int, per_token: int, dtype: torch.dtype, how: str
) -> None:
    if not support.has_gluon(torch.device("cuda"), tiles.TRITON):
        pytest.skip("another card, or another Triton, than hopper_fp8.py is for")
    generator = torch.Generator("cuda").manual_seed(rows)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=generator)

    def weight(lines: int, width: int) -> Weight:
        scale = noise(count, lines // 128, width // 128).abs() / 16
        return Weight(noise(count, lines, width).to(E4M3), scale)

    x, residual = noise(rows, hidden).to(dtype), noise(rows, hidden).to(dtype)
    gate_up, down = weight(2 * inner, hidden), weight(hidden, inner)
    experts = spread(rows, per_token, count, how, generator)
    around = (x, gate_up, down, experts, noise(rows, per_token).abs())
    twin = tiles.choose(1 << 20, per_token, count, E4M3)
    wanted = mixing.run_fp8(twin, *around, residual=residual.clone())
    for _ in range(3):
        found = mixing.run_fp8(tiles.specialised(twin), *around, residual=residual.clone())
        assert torch.equal(found, wanted)
