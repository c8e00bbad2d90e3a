"""FP8 products by the kernel of sm_90: which take it, what stands around it, and its bits."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from quire.kernels import support
from quire.kernels.linear import fp8_linear, fp8_tiles, fp8_tuning, tuning
from quire.kernels.linear.fp8_quantize import quantize
from quire.kernels.linear.fp8_tuning import Fp8Hopper, Fp8Tile
from quire.kernels.linear.product_options import ProductOptions
from quire.kernels.linear.skinny import new_counters
from quire.kernels.weight import Weight

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
META = torch.device("meta")


pytestmark = pytest.mark.usefixtures("hopper")


def taken(n: int, k: int, rows: int, *, silu: bool = False) -> bool:
    variant = fp8_tuning.choose(n, k, rows, silu, library=True, hopper=True)
    assert (
        fp8_tuning.choose(n, k, tuning.row_class(rows), silu, library=True, hopper=True) == variant
    )
    return variant == Fp8Hopper()


def test_tiles_in_halves_of_k_fill_a_card_once() -> None:
    for k in (4096, 12_288):
        assert [taken(4096, k, rows) for rows in (64, 65, 256, 257)] == [False, True, True, False]
    assert taken(2048, 4096, 256) and not taken(2048, 4096, 128)  # too few
    assert taken(5120, 17_408, 128) and not taken(5120, 17_408, 129)  # too many
    assert not taken(6144, 4096, 128) and not taken(4096, 4096, 128, silu=True)
    assert not taken(4096, 4096 + 256, 128) and not taken(4096 - 64, 4096, 128)


def test_it_is_for_one_version_of_triton_on_sm_90_and_one_dtype(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.empty(256, 4096, dtype=BF16, device=META)
    assert fp8_linear.has_hopper(x, META)
    assert not fp8_linear.has_hopper(x.half(), META)
    support.assume((10, 0), support.HOPPER_SHARED, "another")
    assert not fp8_linear.has_hopper(x, META)
    support.assume((9, 0), support.HOPPER_SHARED, support.HOME_CARD)
    monkeypatch.setattr("triton.__version__", support.HOPPER_TRITON[1])
    assert not fp8_linear.has_hopper(x, META)


@pytest.mark.gpu
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns", "width"),
    [(1, 128, 512), (65, 640, 1024), (129, 4096, 4096), (256, 4096, 12_288), (300, 6400, 3072)],
)
def test_gpu_the_kernel_of_sm_90_changes_no_bit(
    rows: int, columns: int, width: int, added: bool
) -> None:
    """Of what tiles make in two shares, rounded, to which a residual is added. More programs than
    run at once among them."""
    generator = torch.Generator("cuda").manual_seed(rows)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=generator)

    x, residual = noise(rows, width).to(BF16), noise(rows, columns).to(BF16)
    if not fp8_linear.has_hopper(x, x.device):
        pytest.skip("another card, or another Triton, than fp8_hopper.py is for")
    scale = noise(columns // 128, width // 128).abs() / 16
    weight = Weight(noise(columns, width).to(E4M3), scale)
    wanted = torch.empty_like(residual)
    twin = Fp8Tile(64, 128, swap=False, stages=4, warps=4, split=2)
    fp8_tiles.tiles(quantize(x), weight, wanted, **vars(twin))
    wanted = wanted + residual if added else wanted
    counters = new_counters(x.device)
    for pdl in (False, True, True):
        around: ProductOptions = {"counters": counters, "pdl": pdl}
        given = residual.clone() if added else None
        found = fp8_linear.run(Fp8Hopper(), x, weight, residual=given, **around)
        assert isinstance(found, Tensor) and torch.equal(found, wanted)
    assert not counters.any()
