"""Products in exact mode, bit by bit."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from quire.kernels.linear import exact
from quire.kernels.linear.tuning import (
    Boxed,
    Gemv,
    Library,
    Side,
    Skinny,
    Stacked,
    Tall,
    Whole,
)

BF16, FP16 = torch.bfloat16, torch.float16


TILES = (
    Skinny(16, 16, 64, swap=False, stages=2, warps=4),
    Skinny(16, 64, 128, swap=True, stages=2, warps=4),
    Skinny(32, 64, 64, swap=True, stages=2, warps=4, tiles=3),
    Skinny(64, 32, 128, swap=False, stages=2, warps=4),
    Boxed(16, 64, 64, stages=2, warps=4),
)


AROUND: list[dict[str, Any]] = [
    {"norm": True},
    {"residual": True},
    {"norm": True, "silu": True},
    {"out_dtype": torch.float32},
]


@pytest.fixture
def bits(device: torch.device, ordered_dots: None) -> Any:
    """Makes a weight's `Bits`."""
    from quire.kernels.linear.check import Bits, Fusion

    del ordered_dots

    def make(n: int, k: int, split: int = 1, dtype: Any = BF16, most: int = 20, **more: Any) -> Any:
        return Bits(torch.empty(n, k, dtype=dtype, device=device), Fusion(most, **more), split)

    return make


@pytest.mark.triton
@pytest.mark.parametrize(
    "around", [*AROUND[1:3], *(pytest.param(one, marks=pytest.mark.long) for one in AROUND[::3])]
)
def test_a_row_has_one_product_whatever_tile_and_rows(bits: Any, around: dict[str, Any]) -> None:
    found = bits(128, 136, most=64, **around)
    for tile, rows in zip(TILES, ((1, 18), (17,), (33,), (2, 64), (3, 33)), strict=True):
        assert found.differ_at(tile, rows) is None, tile


@pytest.mark.triton
def test_shares_are_added_in_order_before_the_residual(bits: Any) -> None:
    found = bits(64, 512, split=4, dtype=FP16, residual=True)
    for tile in (*TILES[:2], TILES[-1]):
        assert found.differ_at(replace(tile, split=4), (1, 20)) is None


@pytest.mark.triton
@pytest.mark.parametrize(
    ("split", "around"),
    [(2, {"residual": True}), (8, {"residual": True}), (4, {"norm": True, "silu": True})],
)
def test_shares_in_one_program_are_those_of_several(
    bits: Any, split: int, around: dict[str, Any]
) -> None:
    """Side by side in few rows, one after another in many; 72 columns end within a tile, and more
    than 64 rows within the second."""
    most = 70 if split == 2 else 17
    found = bits(72 if "residual" in around else 64, 64 * split, split=split, most=most, **around)
    parts = Skinny(16, 64, 64, swap=True, stages=2, warps=4, split=split)
    tall = Tall(64, 128, 64, stages=2, warps=4, split=split)
    assert found.differ_at(parts, (3, 16)) is None
    assert found.differ_at(Side(16, 64, stages=2, split=split, prefetch=True), (1, 8, 9)) is None
    assert found.differ_at(Side(16, 32, stages=2, split=split, hold=True), (1, 9)) is None
    assert found.differ_at(Stacked(64, split), (1, 3, 9)) is None
    assert found.differ_at(tall, {17, most}) is None
    assert found.differ_at(Side(16, 32, stages=2, split=4 if split == 2 else 2), (8,)) == 8
    assert found.differ_at(replace(tall, split=1), (8,)) == 8


@pytest.mark.triton
@pytest.mark.parametrize("silu", [False, True])
def test_a_norm_inside_a_product_is_the_one_apart(bits: Any, silu: bool) -> None:
    """Told by fp16 and fp32 around it, of which bf16 would hide most."""
    around = {"silu": True} if silu else {"out_dtype": torch.float32}
    found = bits(32 if silu else 16, 768, dtype=FP16, norm=True, **around)
    assert found.differ_at(Whole(16, 256, stages=3, warps=4), (1, 8, 16)) is None


@pytest.mark.triton
def test_a_norm_before_shares_that_are_stacked_is_the_one_apart(bits: Any) -> None:
    found = bits(16, 512, dtype=FP16, norm=True, out_dtype=torch.float32)
    assert found.differ_at(Stacked(512, 1), (1, 9)) is None


@pytest.mark.triton
def test_shares_of_two_boxes_are_those_of_one(bits: Any) -> None:
    found = bits(72, 384, split=2, dtype=FP16, residual=True)
    assert found.differ_at(Stacked(192, 2), (1, 5)) is None
    assert found.differ_at(Stacked(96, 4), (5,)) == 5


@pytest.mark.triton
def test_what_a_program_with_all_shares_does_not_take_is_refused(device: torch.device) -> None:
    from quire.kernels.linear import linear

    x, weight = (torch.zeros(n, 192, dtype=BF16, device=device) for n in (17, 16))
    with pytest.raises(ValueError, match="17 rows, of which this kernel takes 16"):
        linear.run(Side(16, 32, stages=2, split=2), x, weight)
    with pytest.raises(ValueError, match="4 shares of 192 in steps of 32"):
        linear.run(Side(16, 32, stages=2, split=4), x[:1], weight)
    with pytest.raises(ValueError, match="2 steps of 2 shares of 192, 32 columns each"):
        linear.run(Side(16, 32, stages=2, split=2, hold=True), x[:1], weight)
    with pytest.raises(ValueError, match="17 rows, of which this kernel takes 16"):
        linear.run(Stacked(96, 2), x, weight)
    with pytest.raises(ValueError, match="2 shares of 48 columns of 192"):
        linear.run(Stacked(48, 2), x[:1], weight)
    with pytest.raises(ValueError, match="1 shares of 192 columns of 192"):
        linear.run(Stacked(192, 1), x[:1], weight, norm_weight=x[0])
    with pytest.raises(ValueError, match="2 shares of 192 in steps of 64"):
        linear.run(Tall(128, 128, 64, stages=2, warps=4, split=2), x, weight)


@pytest.mark.triton
def test_the_librarys_shares_need_no_residual(device: torch.device) -> None:
    from quire.kernels.linear import linear

    x, weight = (torch.randn(n, 64, device=device).to(BF16) for n in (5, 24))
    for dtype in (None, torch.float32):
        found = linear.run(Library(2), x, weight, out_dtype=dtype)
        wanted = linear.run(Library(2), x, weight, residual=x.new_zeros(5, 24), out_dtype=None)
        torch.testing.assert_close(found.to(BF16), wanted)


@pytest.mark.triton
@pytest.mark.parametrize("variant", [Library(), Library(2)])
def test_rows_that_pad_the_librarys_products_change_nothing(
    device: torch.device, variant: Library
) -> None:
    from quire.kernels.linear import linear

    x, weight, norm = (torch.randn(*n, device=device).to(BF16) for n in ((5, 64), (32, 64), (64,)))
    around: list[dict[str, Any]] = [
        {"norm_weight": norm, "silu": True, "eps": 1e-6},
        {"residual": x[:, :32].contiguous()},
        {"out_dtype": torch.float32},
    ]
    for more in around:
        padded, plain = (
            linear.run(
                variant, x, weight, apart=apart,
                **(more | ({"residual": more["residual"].clone()} if "residual" in more else {})),
            )
            for apart in (True, False)
        )  # fmt: skip
        assert padded.is_contiguous()
        torch.testing.assert_close(padded, plain, atol=2e-2, rtol=2e-2)


def summed_in_order(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As a matrix unit sums."""
    total = torch.zeros(len(x), len(weight), device=x.device)
    for k in range(0, x.shape[1], 16):
        part = x[:, k : k + 16].double() @ weight[:, k : k + 16].double().t()
        total = (total + part).float()
    return total.to(dtype)


@pytest.mark.triton
def test_the_library_adds_a_residual_as_tiles_do(
    bits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is seen by its bits where it adds it to what is not rounded yet, in the right order."""
    from quire.kernels.linear import linear

    if torch.cuda.is_available():
        pytest.skip("a card's matrix units round their sums in another way than this stand-in")

    monkeypatch.setattr(linear, "_product", summed_in_order)
    found = bits(64, 512, residual=True)
    assert found.differ_at(Library(), (1, 20)) is None

    def at_once(x: torch.Tensor, weight: torch.Tensor, rows: int, **around: Any) -> torch.Tensor:
        whole = summed_in_order(x[:rows], weight, torch.float32) + around["residual"]
        return whole.to(x.dtype)

    monkeypatch.setattr(linear, "_library", at_once)
    assert found.differ_at(Library(), (1, 20)) == 1


@pytest.mark.triton
def test_rows_that_choose_the_split_are_seen_by_their_bits(bits: Any) -> None:
    found = bits(64, 512, residual=True)
    assert found.differ_at(replace(TILES[1], split=2), (1, 8)) is not None
    assert bits(64, 512).differ_at(Gemv(2, 4), (1, 2)) is not None


@pytest.mark.triton
def test_what_of_the_library_has_other_bits_is_dropped(
    device: torch.device, ordered_dots: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here from 17 rows on, by a library that adds K in two halves."""
    from quire.kernels.linear import linear
    from quire.kernels.linear.check import Fusion, check

    del ordered_dots

    def halves(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        pairs = zip(x.float().chunk(2, 1), weight.float().chunk(2, 1), strict=True)
        return sum(a @ b.t() for a, b in pairs).to(dtype)

    monkeypatch.setattr(linear, "_product", halves)
    order = exact.Order(1, {32: Library()})
    monkeypatch.setattr(exact, "order_of", lambda *_: order)
    weight = torch.empty(32, 64, dtype=BF16, device=device)
    around, products = Fusion(18), exact.ExactProducts()
    assert products.choose(32, 64, 17) == Library()
    (found,) = check(weight, around, products)
    assert (found.bucket, found.rows, found.kept) == (32, 18, True)
    assert isinstance(products.choose(32, 64, 17), Skinny)
    assert check(weight, around, products) == []


@pytest.mark.triton
def test_residuals_are_added_apart_where_the_library_joins_them_otherwise(
    device: torch.device, ordered_dots: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quire.kernels.linear import linear
    from quire.kernels.linear.check import Fusion, check

    del ordered_dots
    if torch.cuda.is_available():
        pytest.skip("a card's matrix units round their sums in another way than this stand-in")
    monkeypatch.setattr(linear, "_product", summed_in_order)
    joins = Library(joins=True)
    monkeypatch.setattr(exact, "order_of", lambda *_: exact.Order(1, {64: joins}))
    weight = torch.empty(32, 512, dtype=BF16, device=device)
    around, products = Fusion(64, residual=True), exact.ExactProducts()
    (found,) = check(weight, around, products)
    assert (found.bucket, found.variant, found.kept) == (64, joins, True)
    assert products.choose(32, 512, 64) == Library()
    assert check(weight, around, products) == []


def test_logprobs_of_a_row_alone_are_those_of_the_twin() -> None:
    from quire.kernels import reference
    from quire.kernels.sampling import logprobs

    logits = torch.randn(3, 500, generator=torch.Generator().manual_seed(1))
    logits[1, 7] = -float("inf")
    tokens = torch.tensor([4, -1, 499])
    found = logprobs.by_row(logits, tokens, 5)
    for one, other in zip(found, reference.logprobs(logits, tokens, 5), strict=True):
        torch.testing.assert_close(one, other)
