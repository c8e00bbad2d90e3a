"""Exact mode's products: one order of sums for each weight, whatever the rows."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from quire.kernels.linear import exact, tuning
from quire.kernels.linear.tuning import (
    Boxed,
    Gemv,
    Library,
    Side,
    Skinny,
    Stacked,
    Tall,
    Timings,
    Variant,
    Whole,
)
from quire.kernels.padding import library_rows
from quire.kernels.support import HOPPER_SHARED

BF16, FP16 = torch.bfloat16, torch.float16
CARDS = tuple(tuning.tables())
SMALL_CARD = 101_376  # bytes of shared memory that a program may have


def weights() -> Iterator[tuple[str, int, int]]:
    """Every weight that a table knows, on every card, and some that none knows."""
    for card in CARDS:
        for n, k in {*tuning.table(card), (384, 96), (2048, 1000), (12_800, 5120)}:
            yield card, n, k


@pytest.mark.parametrize("shared", [HOPPER_SHARED, SMALL_CARD])
def test_no_number_of_rows_changes_the_order_of_a_weights_sums(shared: int) -> None:
    """What the table lists and what the rule adds, with the library and without."""
    counts = sorted({rows for b in exact.BUCKETS for rows in (b // 2 + 1, b)} | {3, 8193, 60_000})
    for card, n, k in weights():
        split = exact.order_of(n, k, card).split
        for rows in counts:
            for own in (False, True):
                found = exact.choose(n, k, rows, shared, card, own=own)
                assert exact.keeps(found, k, split), (card, n, k, rows, found)
                assert not (own and isinstance(found, Library))
                assert tuning.fits(found, shared)


def test_what_breaks_the_order_is_told() -> None:
    tile = Skinny(16, 64, 128, swap=True, stages=4, warps=4)
    assert exact.keeps(tile, 1000, 1)
    assert exact.keeps(replace(tile, split=2), 1024, 2)
    assert exact.keeps(Library(), 1000, 1)
    assert exact.keeps(Library(2), 1000, 2)
    assert exact.keeps(Whole(16, 256, stages=4, warps=4), 1024, 1)
    assert exact.keeps(Side(16, 64, stages=4, split=8), 1024, 8)
    assert exact.keeps(Stacked(768, 4), 3072, 4)
    assert exact.keeps(Tall(128, 256, 64, stages=4, warps=8, split=2), 1024 + 128, 2)
    assert exact.keeps(Boxed(64, 64, 128, stages=7, warps=4, split=2), 1024, 2)
    broken: list[tuple[Variant, int, int]] = [
        (Gemv(2, 4), 1024, 1),
        (replace(tile, split=2), 1024, 1),
        (replace(tile, split=2), 1024 + 128, 2),  # whose shares end where the tile's step does
        (replace(tile, fuse_norm=True), 1024, 1),
        (Whole(16, 256, stages=4, warps=4), 1024, 2),
        (Library(2), 1024, 1),
        (Library(), 1024, 2),
        (Library(3), 1024, 3),
        (Side(16, 64, stages=4, split=4), 1024, 8),
        (Stacked(768, 4), 3072, 1),
        (Side(16, 128, stages=4, split=4), 1024 + 256, 4),
        (Tall(128, 256, 64, stages=4, warps=8, split=2), 1024 + 64, 2),
        (Tall(128, 256, 64, stages=4, warps=8, split=1), 1000, 1),
        (Boxed(64, 64, 128, stages=7, warps=4, split=2), 1024, 1),
        (Boxed(64, 64, 128, stages=7, warps=4, split=2), 1024 + 128, 2),
    ]
    for variant, k, split in broken:
        assert not exact.keeps(variant, k, split)


def test_the_fast_tables_do_change_it() -> None:
    """Else the test above would prove nothing."""
    splits = {
        tuning.choose(1024, 3072, rows, BF16, False, HOPPER_SHARED, card)
        for card in CARDS
        for rows in (1, 8, 256)
    }
    assert any(isinstance(variant, Gemv) for variant in splits)
    assert len({v.split for v in splits if not isinstance(v, Gemv)}) > 1


def test_a_dropped_library_leaves_its_rows_to_tiles() -> None:
    """Of weights that no table knows: one share, by the library in many rows."""
    products, weight, other = exact.ExactProducts(), (12_800, 5120), (12_800, 4096)
    joins = Library(joins=True)
    assert products.choose(*weight, 3000) == joins
    products.drop(*weight, 4096, joins)
    assert products.choose(*weight, 3000) == Library()
    products.drop(*weight, 4096, Library())
    assert isinstance(products.choose(*weight, 3000), Skinny)
    assert isinstance(products.choose(*weight, 4096), Skinny)
    assert products.choose(*weight, 4097) == products.choose(*other, 3000) == joins


def test_the_library_is_asked_for_no_number_of_rows_that_was_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may split K at one number of rows and not at the next. What pads is not in the result."""
    from quire.kernels.linear import linear
    from quire.kernels.linear.check import library_samples, samples

    asked = set()

    def product(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        asked.add(len(x))
        return (x @ weight.t()).to(dtype)

    monkeypatch.setattr(linear, "_product", product)
    x, weight = torch.ones(5000, 8), torch.eye(8)
    for rows in (*range(1, 600), *range(600, 5000, 7), 5000):
        found = linear.run(
            Library(), x[:rows].clone(), weight, residual=torch.ones(rows, 8), apart=True
        )
        assert found.shape == (rows, 8)
    assert torch.equal(found, torch.full((5000, 8), 2.0))
    compared = {library_rows(count) for _, rows in samples(5000) for count in library_samples(rows)}
    assert asked <= compared
    assert len(compared) < 40


def test_where_residuals_join_the_library_padded_products_are_compared_too() -> None:
    from quire.kernels.linear.check import tried

    assert [*tried(Library(), (65, 96, 128))] == [128]
    assert [*tried(Library(joins=True), (65, 96, 128))] == [128, 127]
    assert [*tried(Library(joins=True), (513, 768, 1024))][:2] == [640, 768]
    assert {639, 1023} <= {*tried(Library(joins=True), (513, 768, 1024))}


def test_a_residual_joins_the_librarys_product_where_nothing_pads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from quire.kernels.linear import linear

    apart = []

    def product(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        apart.append(len(x))
        return (x @ weight.t()).to(dtype)

    monkeypatch.setattr(linear, "_product", product)
    for rows in (1, 64, 100, 640):
        x, residual = torch.ones(rows, 8), torch.ones(rows, 8)
        found = linear.run(Library(joins=True), x, torch.eye(8), residual=residual, apart=True)
        assert torch.equal(found, torch.full((rows, 8), 2.0))
    assert apart == [64, 128]


def test_the_cost_is_the_worst_over_rows_and_told_by_the_cards_own_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = dict.fromkeys(exact.BUCKETS, 10.0)
    few = dict.fromkeys(tuning.ROW_BUCKETS, 10.0)
    table = {
        (8, 4): Timings(free, free | {64: 11.0}),
        (4, 4): Timings(free, free | {8: 9.0, 4096: 11.0}),
        (9, 4): Timings(few, few),
    }
    monkeypatch.setattr(tuning, "timings", lambda _card: table)

    def cost(weights: dict[tuple[int, int], int], head: tuple[int, int] = (9, 4)) -> Any:
        found = exact.cost(weights, head, "a")
        return pytest.approx(found.worst), found.whole

    assert cost({(8, 4): 1}) == (0.1, True)
    assert cost({(8, 4): 1, (4, 4): 3}) == (0.075, True)
    assert cost({(4, 4): 1, (9, 4): 1}) == (0.05, True)  # of a head no more rows than sample
    assert cost({(4, 4): 1, (9, 4): 1}, (1, 1)) == (0, False)
    assert cost({(8, 4): 1, (2, 2): 1}) == (-1, False)


def test_every_bucket_is_tried_at_its_ends_and_between() -> None:
    from quire.kernels.linear.check import samples

    found = dict(samples(9000))
    assert tuple(found) == (*exact.BUCKETS, exact.BEYOND)
    assert found[1] == (1,)
    assert found[64] == (33, 48, 64)
    assert found[exact.BEYOND] == (8193, 8596, 9000)
    assert dict(samples(20))[32] == (17, 18, 20)
    for bucket, rows in samples(300):
        assert {exact.bucket_of(count) for count in rows} == {bucket}


# ---------------------------------------------------------------- by bits

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
    from quire.kernels.linear.check import Around, Bits

    del ordered_dots

    def make(n: int, k: int, split: int = 1, dtype: Any = BF16, most: int = 20, **more: Any) -> Any:
        return Bits(torch.empty(n, k, dtype=dtype, device=device), Around(most, **more), split)

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
    from quire.kernels.linear.check import Around, check

    del ordered_dots

    def halves(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        pairs = zip(x.float().chunk(2, 1), weight.float().chunk(2, 1), strict=True)
        return sum(a @ b.t() for a, b in pairs).to(dtype)

    monkeypatch.setattr(linear, "_product", halves)
    order = exact.Order(1, {32: Library()})
    monkeypatch.setattr(exact, "order_of", lambda *_: order)
    weight = torch.empty(32, 64, dtype=BF16, device=device)
    around, products = Around(18), exact.ExactProducts()
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
    from quire.kernels.linear.check import Around, check

    del ordered_dots
    if torch.cuda.is_available():
        pytest.skip("a card's matrix units round their sums in another way than this stand-in")
    monkeypatch.setattr(linear, "_product", summed_in_order)
    joins = Library(joins=True)
    monkeypatch.setattr(exact, "order_of", lambda *_: exact.Order(1, {64: joins}))
    weight = torch.empty(32, 512, dtype=BF16, device=device)
    around, products = Around(64, residual=True), exact.ExactProducts()
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
