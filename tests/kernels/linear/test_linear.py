"""Products: each variant against the twin and an fp64 oracle, around every edge of its tiles."""

import dataclasses

import pytest
import torch
from torch import Tensor

from quire.kernels import reference
from quire.kernels.linear import tuning
from quire.kernels.linear.tuning import (
    Boxed,
    Gemv,
    Library,
    Skinny,
    Variant,
)

BF16 = torch.bfloat16


def _case(
    rows: int, columns: int, width: int, dtype: torch.dtype, device: torch.device, silu: bool
) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(rows * 1000 + columns + width)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(dtype).to(device)

    return {
        "x": draw(rows, width),
        "weight": draw(columns * (2 if silu else 1), width) * width**-0.5,
        "norm_weight": 1 + 0.2 * draw(width),
        "residual": draw(rows, columns),
    }


def _oracle(case: dict[str, Tensor], norm: bool, residual: bool, silu: bool) -> Tensor:
    wide = {name: tensor.double() for name, tensor in case.items()}
    x = wide["x"]
    if norm:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * wide["norm_weight"]
    y = x @ wide["weight"].t()
    if silu:
        gate, up = y.chunk(2, -1)
        y = gate * torch.sigmoid(gate) * up
    return y + wide["residual"] if residual else y


def _error(actual: Tensor, wanted: Tensor) -> float:
    return float((actual.double() - wanted).norm() / wanted.norm())


def _check(
    variant: Variant,
    rows: int,
    columns: int,
    width: int,
    device: torch.device,
    dtype: torch.dtype = BF16,
    norm: bool = False,
    residual: bool = False,
    silu: bool = False,
    out_dtype: torch.dtype | None = None,
    pdl: bool = False,
) -> Tensor:
    """The variant's error is at most twice the twin's (plus what fp32 sums may lose)."""
    from quire.kernels.linear import linear

    case = _case(rows, columns, width, dtype, device, silu)
    options = {
        "norm_weight": case["norm_weight"] if norm else None,
        "eps": 1e-6,
        "silu": silu,
        "out_dtype": out_dtype,
    }
    wanted = _oracle(case, norm, residual, silu)
    twin = reference.linear(
        case["x"],
        case["weight"],
        residual=case["residual"].clone() if residual else None,
        **options,
    )
    actual = linear.run(
        variant,
        case["x"],
        case["weight"],
        residual=case["residual"].clone() if residual else None,
        pdl=pdl,
        **options,
    )
    assert actual.shape == twin.shape
    assert actual.dtype == twin.dtype
    assert _error(actual, wanted) <= 2 * _error(twin, wanted) + 1e-6
    return actual


SMALL_DOT = Skinny(16, 32, 64, swap=False, stages=2, warps=4)


BOXED = Boxed(16, 32, 64, stages=2, warps=4, split=3)


SWAPPED = dataclasses.replace(SMALL_DOT, block_n=64, swap=True)


AROUND = [
    {"norm": True},
    {"residual": True},
    {"norm": True, "silu": True},
    {"residual": True, "silu": True, "norm": True},
    {"norm": True, "out_dtype": torch.float32},
]


@pytest.mark.triton
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize(("columns", "width"), [(8, 1024), (7, 96), (5, 1100)])
def test_gemv_at_odd_sizes(rows: int, columns: int, width: int, device: torch.device) -> None:
    _check(Gemv(2, 4), rows, columns, width, device, norm=True, silu=True, residual=True)


@pytest.mark.triton
@pytest.mark.parametrize("around", AROUND)
def test_gemv_with_what_stands_around_it(around: dict[str, bool], device: torch.device) -> None:
    _check(Gemv(4, 4), 2, 12, 512, device, **around)


@pytest.mark.triton
@pytest.mark.parametrize("rows", [1, 15, 16, 17])
@pytest.mark.parametrize(("columns", "width"), [(64, 128), (65, 64), (33, 72), (130, 200)])
def test_skinny_at_odd_sizes(rows: int, columns: int, width: int, device: torch.device) -> None:
    _check(SWAPPED, rows, columns, width, device, residual=True)


@pytest.mark.triton
@pytest.mark.parametrize("variant", [SMALL_DOT, SWAPPED])
@pytest.mark.parametrize("around", AROUND)
def test_skinny_with_what_stands_around_it(
    variant: Skinny, around: dict[str, bool], device: torch.device
) -> None:
    _check(dataclasses.replace(variant, fuse_norm=True), 18, 70, 136, device, **around)


@pytest.mark.triton
@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("around", [{"residual": True}, {"norm": True, "silu": True}])
def test_boxes_at_odd_sizes(split: int, around: dict[str, bool], device: torch.device) -> None:
    variant = dataclasses.replace(BOXED, split=split)
    for rows, columns, width in ((18, 70, 264), (5, 32, 64)):
        _check(variant, rows, columns, width, device, **around)


@pytest.mark.triton
@pytest.mark.parametrize(
    ("tiles", "split"),
    [(2, 1), (3, 2), *(pytest.param(*one, marks=pytest.mark.long) for one in ((2, 2), (3, 1)))],
)
@pytest.mark.parametrize("variant", [SMALL_DOT, SWAPPED])
@pytest.mark.parametrize("around", [{"residual": True}, {"norm": True, "silu": True}])
def test_tiles_of_one_program_are_those_of_several(
    variant: Skinny, tiles: int, split: int, around: dict[str, bool], device: torch.device
) -> None:
    variant = dataclasses.replace(variant, split=split, fuse_norm=split == 1)
    several = dataclasses.replace(variant, tiles=tiles)
    found = [_check(v, 18, 150, 136, device, **around) for v in (variant, several)]
    assert torch.equal(*found)


@pytest.mark.triton
def test_more_tiles_than_a_program_takes_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="1 to 3 tiles, not 4"):
        _check(dataclasses.replace(SWAPPED, tiles=4), 5, 64, 64, device)


@pytest.mark.triton
@pytest.mark.parametrize("tile", [SWAPPED, BOXED])
@pytest.mark.parametrize("split", [2, 4])
@pytest.mark.parametrize("width", [256, 320, 72])
@pytest.mark.parametrize("silu", [False, True])
def test_split_products_leave_their_counters_at_zero(
    tile: Variant, split: int, width: int, silu: bool, device: torch.device
) -> None:
    from quire.kernels.linear import linear, skinny

    case = _case(20, 48, width, BF16, device, silu)
    counters = skinny.new_counters(device)
    variant = dataclasses.replace(tile, split=split)
    outs = [
        linear.run(
            variant,
            case["x"],
            case["weight"],
            residual=case["residual"].clone(),
            silu=silu,
            counters=counters,
        )
        for _ in range(2)
    ]
    assert _error(outs[0], _oracle(case, False, True, silu)) < 1e-2
    assert torch.equal(outs[0], outs[1])
    assert not counters.any()


@pytest.mark.triton
def test_norm_is_computed_apart_where_the_variant_splits(device: torch.device) -> None:
    _check(dataclasses.replace(SWAPPED, split=2), 5, 64, 256, device, norm=True)


@pytest.mark.triton
@pytest.mark.parametrize("variant", [Gemv(2, 4), SWAPPED])
def test_fp32_products_are_not_tf32(variant: Variant, device: torch.device) -> None:
    actual = _check(variant, 3, 40, 160, device, dtype=torch.float32, norm=True)
    case = _case(3, 40, 160, torch.float32, device, False)
    assert _error(actual, _oracle(case, True, False, False)) < 1e-6


@pytest.mark.triton
@pytest.mark.parametrize("around", [*AROUND, {}, {"residual": True, "silu": True}])
def test_library_with_what_stands_around_it(around: dict[str, bool], device: torch.device) -> None:
    _check(Library(), 9, 40, 64, device, **around)


@pytest.mark.triton
@pytest.mark.parametrize("split", [2, 3])
@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_a_library_product_in_shares(split: int, dtype: torch.dtype, device: torch.device) -> None:
    _check(Library(split), 9, 40, 192, device, dtype=dtype, residual=True)


@pytest.mark.triton
@pytest.mark.parametrize("around", [*AROUND, {}])
def test_shares_are_for_a_residual_alone(around: dict[str, bool], device: torch.device) -> None:
    _check(Library(2), 9, 40, 64, device, **around)


@pytest.mark.triton
def test_a_row_does_not_depend_on_the_rows_beside_it(device: torch.device) -> None:
    from quire.kernels.linear import linear

    case = _case(16, 64, 256, BF16, device, False)
    for variant, rows in ((Gemv(2, 4), 4), (SWAPPED, 16), (SMALL_DOT, 16)):
        together = linear.run(variant, case["x"][:rows], case["weight"])
        alone = [linear.run(variant, case["x"][i : i + 1], case["weight"]) for i in range(rows)]
        assert torch.equal(together, torch.cat(alone))


@pytest.mark.triton
@pytest.mark.parametrize("rows", [0, 1, 3, 30])
def test_linear_answers_every_number_of_rows(rows: int, device: torch.device) -> None:
    from quire.kernels.linear.linear import linear

    case = _case(rows, 72, 128, BF16, device, False)
    out = linear(case["x"], case["weight"], residual=case["residual"].clone())
    assert out.shape == (rows, 72)
    if rows:
        assert _error(out, _oracle(case, False, True, False)) < 1e-2


@pytest.mark.triton
def test_the_residual_is_reused_for_the_result(device: torch.device) -> None:
    from quire.kernels.linear.linear import linear

    case = _case(2, 16, 64, BF16, device, False)
    out = linear(case["x"], case["weight"], residual=case["residual"])
    assert out.data_ptr() == case["residual"].data_ptr()


@pytest.mark.gpu
@pytest.mark.triton
@pytest.mark.parametrize("shape", [(4096, 1024), (1024, 3072), (2560, 9728), (4096, 12288)])
@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16, 33, 64, 128, 256, 300])
@pytest.mark.parametrize("pdl", [False, True])
def test_chosen_variants_at_the_models_sizes(
    shape: tuple[int, int], rows: int, pdl: bool, device: torch.device
) -> None:
    variant = tuning.choose(*shape, rows, BF16, False)
    _check(variant, rows, *shape, device, norm=True, residual=True, pdl=pdl)
    silu = tuning.choose(*shape, rows, BF16, True)
    _check(silu, rows, shape[0] // 2, shape[1], device, norm=True, silu=True, pdl=pdl)


@pytest.mark.gpu
@pytest.mark.triton
@pytest.mark.parametrize("rows", [1, 8, 64, 256])
def test_the_head_gives_fp32_logits(rows: int, device: torch.device) -> None:
    variant = tuning.choose(151_936, 1024, rows, BF16, False)
    _check(variant, rows, 151_936, 1024, device, norm=True, out_dtype=torch.float32)


# ---------------------------------------------------------------- the twin


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("silu", [False, True])
def test_twin_against_fp64(norm: bool, residual: bool, silu: bool) -> None:
    case = _case(5, 24, 40, torch.float32, torch.device("cpu"), silu)
    out = reference.linear(
        case["x"],
        case["weight"],
        norm_weight=case["norm_weight"] if norm else None,
        eps=1e-6,
        residual=case["residual"] if residual else None,
        silu=silu,
    )
    assert _error(out, _oracle(case, norm, residual, silu)) < 1e-6


def test_twin_logits_are_fp32() -> None:
    case = _case(3, 64, 256, BF16, torch.device("cpu"), False)
    out = reference.linear(case["x"], case["weight"], out_dtype=torch.float32)
    assert out.dtype == torch.float32
    assert _error(out, _oracle(case, False, False, False)) < 1e-2
