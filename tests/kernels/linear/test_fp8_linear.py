"""Products of FP8 weights: each kernel against its twin, around every edge of blocks and tiles."""

import dataclasses

import pytest
import torch
from torch import Tensor

from quire.kernels import reference
from quire.kernels.linear.fp8_tuning import Fp8Gemv, Fp8Library, Fp8Tile, Fp8Variant
from quire.kernels.reference.fp8 import widen_blocks
from quire.kernels.support import HOPPER_SHARED
from quire.kernels.weight import Quantized, Weight

BF16 = torch.bfloat16
TILE = Fp8Tile(16, 64, swap=True, stages=2, warps=4)
TALL = Fp8Tile(16, 32, swap=False, stages=2, warps=4)
GEMV = Fp8Gemv(64, 4)
AROUND = [
    {"norm": True},
    {"residual": True},
    {"norm": True, "silu": True},
    {"norm": True, "out_dtype": torch.float32},
]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(
    variant: Fp8Variant,
    rows: int,
    columns: int,
    width: int,
    device: torch.device,
    *,
    dtype: torch.dtype = BF16,
    norm: bool = False,
    residual: bool = False,
    silu: bool = False,
    out_dtype: torch.dtype | None = None,
    pdl: bool = False,
) -> Tensor:
    """The result is the twin's but for the order of sums and one rounding. Blocks of the weight and
    groups of x differ in size, so that a scale taken from elsewhere is seen."""
    from quire.kernels.linear import fp8_linear

    n = columns * (2 if silu else 1)
    sizes = draw(1, -(-n // 128), -(-width // 128)).exp()
    sizes = sizes.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :width]
    made = reference.quantize_blocks(draw(2, n, width) * sizes * width**-0.5)
    assert made.scale is not None
    weight = Weight(made.data.to(device), made.scale.to(device))
    groups = draw(3, rows, -(-width // 128)).exp().repeat_interleave(128, 1)[:, :width]
    x = (draw(4, rows, width) * groups).to(dtype).to(device)
    around = {
        "norm_weight": (1 + 0.2 * draw(5, width)).to(dtype).to(device) if norm else None,
        "eps": 1e-6,
        "silu": silu,
        "out_dtype": out_dtype,
    }
    added = draw(6, rows, columns).to(dtype).to(device)
    twin = reference.linear_fp8(x, weight, residual=added if residual else None, **around)
    given = added.clone() if residual else None
    found = fp8_linear.run(variant, x, weight, residual=given, pdl=pdl, **around)
    assert found.shape == twin.shape and found.dtype == twin.dtype
    error = (found.double() - twin.double()).norm() / twin.double().norm()
    # The twin rounds before SiLU·mul; a norm's sum in another order moves numbers to other e4m3.
    # A Hopper's tensor core keeps 13 bits below the largest of the 32 products that it adds at a
    # time, four times a block: some cuts of a 2^-13th each.
    most = 8e-3 if silu else 4e-3
    coarse = device.type == "cuda" or isinstance(variant, Fp8Gemv)  # fp16 in sums of eight
    exact = 8 * 2**-13 if coarse else 1e-5
    assert error <= (most if dtype == BF16 else 1e-3 if norm else exact)
    return found


@pytest.mark.triton
@pytest.mark.parametrize(("columns", "width"), [(8, 256), (130, 384), (5, 2064)])
def test_one_row_at_odd_sizes(columns: int, width: int, device: torch.device) -> None:
    check(Fp8Gemv(32, 4), 1, columns, width, device, norm=True)
    check(Fp8Gemv(64, 8), 1, columns, width, device, residual=True, dtype=torch.float32)


@pytest.mark.triton
@pytest.mark.parametrize(
    ("x", "w"), [((448.0, 448.0), (448.0, 448.0)), ((448.0, 2**-9), (0, 2**-9))]
)
def test_one_row_s_products_neither_overflow_nor_vanish(
    x: tuple[float, float], w: tuple[float, float], device: torch.device
) -> None:
    """The largest numbers of e4m3, and the least; the first of each group makes the scale 1."""
    from quire.kernels.linear import fp8_linear

    def wide(numbers: tuple[float, float], rows: int) -> Tensor:
        made = torch.full((rows, 256), numbers[1], device=device)
        made[:, ::128] = numbers[0]
        return made

    weight = Weight(wide(w, 8).to(torch.float8_e4m3fn), torch.ones(1, 2, device=device))
    expected = wide(x, 1) @ wide(w, 8).t()
    assert torch.equal(fp8_linear.run(GEMV, wide(x, 1), weight), expected)


@pytest.mark.triton
@pytest.mark.parametrize(("columns", "around"), [(70, {"residual": True}), (128, {"silu": True})])
def test_a_program_of_several_tiles_sums_as_one_of_each(
    columns: int, around: dict[str, bool], device: torch.device
) -> None:
    """Programs whose last tiles are past the weight's end among them."""
    each = check(Fp8Gemv(16, 4), 1, columns, 264, device, norm=True, **around)
    found = check(Fp8Gemv(16, 4, 3), 1, columns, 264, device, norm=True, **around)
    assert torch.equal(found, each)


@pytest.mark.triton
@pytest.mark.parametrize("variant", [GEMV, TILE, TALL])
@pytest.mark.parametrize("around", AROUND)
def test_what_stands_around_a_product(
    variant: Fp8Variant, around: dict[str, bool], device: torch.device
) -> None:
    check(variant, 1, 128, 256, device, **around)


@pytest.mark.triton
@pytest.mark.parametrize("rows", [1, 16, 17])
@pytest.mark.parametrize(("columns", "width"), [(64, 128), (130, 200)])
@pytest.mark.parametrize("variant", [TILE, TALL])
def test_tiles_at_odd_sizes(
    rows: int, columns: int, width: int, variant: Fp8Tile, device: torch.device
) -> None:
    check(variant, rows, columns, width, device, residual=True, dtype=torch.float32)


@pytest.mark.triton
@pytest.mark.parametrize("split", [2, 3])
def test_shares_of_k_are_added_in_order(split: int, device: torch.device) -> None:
    """Twice the same bits, and the counters are as they were."""
    from quire.kernels.linear import fp8_linear, skinny

    variant = dataclasses.replace(TILE, split=split)
    check(variant, 5, 70, 520, device, residual=True)
    made = reference.quantize_blocks(draw(2, 70, 520))
    assert made.scale is not None
    weight = Weight(made.data.to(device), made.scale.to(device))
    x, counters = draw(3, 5, 520).to(BF16).to(device), skinny.new_counters(device)
    found = [fp8_linear.run(variant, x, weight, counters=counters) for _ in range(2)]
    assert torch.equal(*found) and not counters.any()


@pytest.mark.triton
@pytest.mark.parametrize("tile", [TILE, TALL])
def test_gates_and_ups_are_added_up_before_silu(tile: Fp8Tile, device: torch.device) -> None:
    check(dataclasses.replace(tile, split=2), 5, 128, 520, device, norm=True, silu=True)


@pytest.mark.triton
def test_a_row_is_the_same_beside_others_and_in_other_tiles(device: torch.device) -> None:
    from quire.kernels.linear import fp8_linear

    made = reference.quantize_blocks(draw(2, 136, 256))
    assert made.scale is not None
    weight = Weight(made.data.to(device), made.scale.to(device))
    x = draw(3, 18, 256).to(BF16).to(device)
    many = [
        fp8_linear.run(variant, x, weight)
        for variant in (TILE, dataclasses.replace(TILE, block_m=32, block_n=128))
    ]
    alone = fp8_linear.run(TILE, x[7:8], weight)
    assert torch.equal(*many) and torch.equal(many[0][7:8], alone)


@pytest.mark.triton
def test_no_rows_give_no_rows(device: torch.device) -> None:
    from quire.kernels.linear import fp8_linear

    weight = reference.quantize_blocks(draw(2, 128, 128))
    assert weight.scale is not None
    given = Weight(weight.data.to(device), weight.scale.to(device))
    x = torch.empty(0, 128, dtype=BF16, device=device)
    assert fp8_linear.linear_fp8(x, given).shape == (0, 128)


def test_k_is_split_until_a_card_is_full_and_never_for_any_number_of_rows() -> None:
    pytest.importorskip("triton")
    from quire.kernels.linear.fp8_tuning import choose

    splits = {rows: choose(4096, 12288, rows, False) for rows in (2, 64, 128, 256, 257)}
    assert [v.split for v in splits.values() if isinstance(v, Fp8Tile)] == [4, 4, 2, 2, 1]
    gates = choose(24576, 4096, 8, True)
    assert isinstance(gates, Fp8Tile) and gates.split == 1


@pytest.mark.parametrize("shared", [HOPPER_SHARED, 101_376])
@pytest.mark.parametrize(("n", "k", "silu"), [(24576, 4096, True), (1024, 3072, False)])
def test_rows_of_one_class_take_one_kernel(n: int, k: int, silu: bool, shared: int) -> None:
    """Which is how warm-up knows all of them."""
    pytest.importorskip("triton")
    from quire.kernels.linear.fp8_tuning import choose, exact
    from quire.kernels.linear.tuning import row_class

    for pick in (choose, exact):
        picked = {row: pick(n, k, row, silu, shared) for row in (*range(1, 300), 999, 1000, 1001)}
        assert all(picked[row] == pick(n, k, row_class(row), silu, shared) for row in picked)


def test_programs_of_one_row_all_run_at_once() -> None:
    """As an H200 liked it best for 8B; of what no program holds, tiles."""
    pytest.importorskip("triton")
    from quire.kernels.linear.fp8_tuning import choose

    for n, k, silu, best in (
        (6144, 4096, False, Fp8Gemv(4, 8, 4)),
        (4096, 4096, False, Fp8Gemv(4, 8, 3)),
        (24576, 4096, True, Fp8Gemv(4, 8, 12)),
        (4096, 12288, False, Fp8Gemv(2, 8, 8)),
    ):
        assert choose(n, k, 1, silu) == best
    assert isinstance(choose(128, 1 << 16, 1, False), Fp8Tile)
    assert isinstance(choose(128, 264, 1, False), Fp8Tile)


def test_the_library_is_asked_for_many_rows_alone_and_where_it_is_there() -> None:
    pytest.importorskip("triton")
    from quire.kernels.linear import fp8_library
    from quire.kernels.linear.fp8_tuning import choose

    for rows in (129, 256, 257):
        assert choose(4096, 4096, rows, False, library=True) == Fp8Library()
    for rows in (65, 128):
        assert choose(24576, 4096, rows, True, library=True) == Fp8Library()
    for n, k, rows, there in (
        (4096, 4096, 128, True),
        (6144, 4096, 64, True),
        (4096, 4096, 256, False),
        (4096, 4096, 257, False),
        (64, 640, 999, True),
    ):
        assert isinstance(choose(n, k, rows, False, library=there), Fp8Tile)
    assert not fp8_library.available(torch.device("cpu")) or torch.version.cuda


@pytest.mark.triton
@pytest.mark.gpu
@pytest.mark.parametrize("rows", [129, 1000])
def test_the_library_is_the_twin(rows: int, device: torch.device) -> None:
    from quire.kernels.linear import fp8_library

    if not fp8_library.available(device):
        pytest.skip("this card's library has no product of scaled blocks")
    check(Fp8Library(), rows, 384, 1024, device, residual=True)
    check(Fp8Library(), rows, 384, 1024, device, norm=True, silu=True)


def by_twin(x: Quantized, weight: Weight, dtype: torch.dtype) -> Tensor:
    """In the library's place."""
    wide = x.data.float() * x.scale.repeat_interleave(128, 1)
    return (wide @ widen_blocks(weight).t()).to(dtype)


@pytest.mark.triton
@pytest.mark.parametrize("then", [TALL, Fp8Library()])
def test_what_goes_to_one_more_product_is_quantized_once_to_the_same_bits(
    then: Fp8Variant, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quire.kernels.linear import fp8_library, fp8_linear

    monkeypatch.setattr(fp8_library, "product", by_twin)
    made = [reference.quantize_blocks(draw(n, n, k)) for n, k in ((512, 128), (128, 256))]
    gate_up, down = (
        Weight(w.data.to(device), w.scale.to(device)) for w in made if w.scale is not None
    )
    x = draw(3, 18, 128).to(BF16).to(device)
    wide, narrow = (
        fp8_linear.run(Fp8Library(), x, gate_up, silu=True, narrow=narrow)
        for narrow in (False, True)
    )
    assert isinstance(wide, Tensor) and isinstance(narrow, Quantized)
    found = [fp8_linear.run(then, inner, down, residual=x.clone()) for inner in (wide, narrow)]
    assert torch.equal(*found) and found[1].dtype == BF16


@pytest.mark.triton
def test_a_library_that_is_wrong_or_fails_is_not_used(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quire.kernels.linear import fp8_library

    def wrong(x: Quantized, weight: Weight, dtype: torch.dtype) -> Tensor:
        assert weight.scale is not None
        return by_twin(x, Weight(weight.data, weight.scale.flip(0)), dtype)

    def fails(*_: object) -> Tensor:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    for product, expected in ((by_twin, True), (wrong, False), (fails, False)):
        monkeypatch.setattr(fp8_library, "product", product)
        assert fp8_library._is_right.__wrapped__(device) is expected
