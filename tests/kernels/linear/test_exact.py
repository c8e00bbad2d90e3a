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
