"""Which kernel multiplies, chosen without a device."""

import pytest
import torch

from quire.kernels.linear import tuning
from quire.kernels.linear.tuning import (
    Boxed,
    Gemv,
    Library,
    Side,
    Skinny,
    Stacked,
    Tile,
    Whole,
)
from quire.kernels.support import HOPPER_SHARED

BF16 = torch.bfloat16


BOXED = Boxed(16, 32, 64, stages=2, warps=4, split=3)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 16, 17, 64, 65, 128, 256, 257, 10_000])
@pytest.mark.parametrize("shape", [(1, 8), (100, 24), (4096, 1024), (51_200, 5120), (7, 25_601)])
@pytest.mark.parametrize("silu", [False, True])
def test_every_shape_has_a_variant(shape: tuple[int, int], rows: int, silu: bool) -> None:
    variant = tuning.choose(*shape, rows, BF16, silu)
    if isinstance(variant, Gemv):
        assert rows <= 4
    if isinstance(variant, Skinny):
        assert rows <= 256
        assert not (variant.fuse_norm and variant.split > 1)


def test_the_table_is_read_whole() -> None:
    for (n, k), rows in tuning.table().items():
        assert n > 0
        assert k > 0
        assert set(rows) <= set(tuning.ROW_BUCKETS)
        for bucket, variant in rows.items():
            assert tuning.from_json(tuning.to_json(variant)) == variant
            assert tuning.choose(n, k, bucket, BF16, False) == variant


def test_a_cards_own_table_comes_first_and_others_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = Gemv(1, 2), Gemv(2, 4)
    known = {
        "NVIDIA H100 80GB HBM3": {(8, 8): {1: fast}},
        "NVIDIA H200": {(8, 8): {1: slow}, (16, 8): {1: slow}},
    }
    monkeypatch.setattr(tuning, "tables", lambda: known)
    tuning.table.cache_clear()
    try:
        chosen = {
            card: [tuning.choose(n, 8, 1, BF16, False, card=card) for n in (8, 16)]
            for card in ("NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA A100-SXM4-80GB")
        }
    finally:
        tuning.table.cache_clear()
    assert list(chosen.values()) == [[fast, slow], [slow, slow], [slow, slow]]


def test_a_ranks_share_of_a_product_takes_what_was_found_for_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = {"NVIDIA H200": {(64, 32): {1: Gemv(1, 2)}, (32, 64): {1: Gemv(2, 4)}}}
    monkeypatch.setattr(tuning, "tables", lambda: known)
    tuning.table.cache_clear()
    try:
        sizes = ((64, 32), (32, 32), (16, 32), (8, 64), (32, 8), (33, 32))
        chosen = [tuning.choose(*size, 1, BF16, False) for size in sizes]
    finally:
        tuning.table.cache_clear()
    first, second = Gemv(1, 2), Gemv(2, 4)
    assert chosen == [first, first, first, second, second, tuning.rule(33, 32, 1, False)]


@pytest.mark.parametrize("shared", [101_376, 166_912])
def test_on_a_smaller_card_products_fit_its_shared_memory(shared: int) -> None:
    """Of the table what fits, else the rule's, of as many stages as there is room for."""
    for (n, k), rows in tuning.table().items():
        for bucket, listed in rows.items():
            variant = tuning.choose(n, k, bucket, BF16, False, shared)
            if isinstance(variant, Skinny):
                assert 2 <= variant.stages <= shared // variant.stage_bytes
            fits = not isinstance(listed, Tile) or listed.stages * listed.stage_bytes <= shared
            assert (variant == listed) == fits


def test_what_holds_all_columns_is_chosen_for_as_many() -> None:
    """Not for a rank's share of a measured weight, or a small model's of such a size."""
    for (n, k), rows in tuning.table().items():
        for bucket in rows:
            for width in (k, k // 2, k // 4, k // 8):
                chosen = tuning.choose(n, width, bucket, BF16, False)
                if isinstance(chosen, Whole | Stacked):
                    assert chosen.split * chosen.stages * chosen.block_k == width
                if isinstance(chosen, Side):
                    assert width % (chosen.split * chosen.block_k) == 0


def test_another_card_takes_no_kernel_that_holds_weights_ahead() -> None:
    """They were measured where the table is from."""
    ahead = Side | Whole | Stacked
    held = [(n, k, bucket) for (n, k), rows in tuning.table().items()
            for bucket, listed in rows.items() if isinstance(listed, ahead)]  # fmt: skip
    assert held
    for n, k, bucket in held:
        other = tuning.choose(n, k, bucket, BF16, False, card="NVIDIA RTX 4090")
        assert not isinstance(other, ahead)


def test_cards_without_descriptors_take_no_boxes() -> None:
    assert tuning.fits(BOXED, HOPPER_SHARED) and not tuning.fits(BOXED, 166_912)


def test_one_row_past_a_very_large_weight_is_launched_alone() -> None:
    small, large = (torch.empty(n, 4096, dtype=BF16, device="meta") for n in (4096, 24_576))
    assert [tuning.chains(w, rows) for w in (small, large) for rows in (1, 2, 256)] == [
        True, True, True, False, True, True,
    ]  # fmt: skip


def test_fp32_weights_go_to_the_library() -> None:
    assert tuning.choose(4096, 1024, 1, torch.float32, False) == Library()


def test_an_unknown_kind_in_the_table_is_refused() -> None:
    with pytest.raises(KeyError):
        tuning.from_json({"kind": "magic"})
