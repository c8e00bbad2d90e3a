"""Exact mode's products of FP8 weights: one order of sums for each weight, whatever the rows."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from quire.kernels.linear import exact, fp8_tuning
from quire.kernels.linear.fp8_tuning import Fp8Gemv, Fp8Library, Fp8Tile
from quire.kernels.support import HOPPER_SHARED

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
SMALL_CARD = 101_376  # bytes of shared memory that a program may have
WEIGHTS = ((6144, 4096), (4096, 4096), (4096, 12_288), (1024, 3072), (12_800, 5120), (384, 96))
COUNTS = sorted({rows for b in exact.BUCKETS for rows in (b // 2 + 1, b)} | {3, 8193, 60_000})


@pytest.mark.parametrize("shared", [HOPPER_SHARED, SMALL_CARD])
@pytest.mark.parametrize("silu", [False, True])
def test_no_number_of_rows_changes_the_order_of_a_weights_sums(silu: bool, shared: int) -> None:
    for n, k in WEIGHTS:
        found = [fp8_tuning.exact(n, k, rows, silu, shared) for rows in COUNTS]
        assert len({tile.split for tile in found}) == 1
        for tile in found:
            assert isinstance(tile, Fp8Tile)
            assert (tile.block_n if tile.swap else tile.block_m) >= 64  # the instruction's M side
            assert tile.stages * tile.stage_bytes(silu) <= shared
            assert not (silu and tile.split > 1)


def test_the_fast_rule_does_change_it() -> None:
    """Else the test above would prove nothing."""
    for n, k in WEIGHTS[:3]:
        found = [fp8_tuning.choose(n, k, rows, False, library=True) for rows in COUNTS]
        assert {type(one) for one in found} == {Fp8Gemv, Fp8Tile, Fp8Library}
        assert len({one.split for one in found if isinstance(one, Fp8Tile)}) > 1


def test_many_rows_sum_the_shares_of_few_in_turn() -> None:
    few, many = (fp8_tuning.exact(4096, 12_288, rows, False) for rows in (1, 2000))
    assert (few.split, few.in_turn) == (many.split, not many.in_turn) == (4, False)


def test_neither_the_vector_kernel_nor_the_library_is_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from quire.kernels.linear import fp8_library, fp8_linear
    from quire.kernels.triton_ops import TritonOps
    from quire.kernels.weight import Weight

    launched = []

    def run(variant: Any, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        launched.append(type(variant))
        return x

    monkeypatch.setattr(fp8_linear, "run", run)
    monkeypatch.setattr(fp8_library, "available", lambda _device: True)
    meta = torch.device("meta")
    weight = Weight(torch.empty(4096, 4096, dtype=E4M3, device=meta), torch.empty(32, 32))
    for ops in (TritonOps.on(meta, exact=True), TritonOps.on(meta)):
        for rows in (1, 64, 1000):
            ops.linear_fp8(torch.empty(rows, 4096, dtype=BF16, device=meta), weight)
    assert launched == [Fp8Tile, Fp8Tile, Fp8Tile, Fp8Gemv, Fp8Tile, Fp8Library]


# ---------------------------------------------------------------- by bits

SWAPPED = Fp8Tile(16, 64, swap=True, stages=2, warps=4)
PLAIN = Fp8Tile(64, 64, swap=False, stages=2, warps=4)


@pytest.fixture
def bits(device: torch.device, ordered_dots: None) -> Any:
    """Makes a weight's `Fp8Bits`."""
    from quire.kernels.linear.check import Fusion
    from quire.kernels.linear.fp8_check import Fp8Bits

    del ordered_dots

    def make(n: int, k: int, **around: Any) -> Any:
        weight = torch.empty(n, k, dtype=E4M3, device=device)
        return Fp8Bits(weight, Fusion(20, **around), BF16)

    return make


@pytest.mark.triton
def test_shares_in_turn_are_those_side_by_side(bits: Any) -> None:
    """Two of three and two blocks; one share is seen to be another order."""
    found = bits(40, 640, residual=True)
    two = replace(PLAIN, split=2)
    found._cases = [(x, b, found._run(two, x, b)) for x, b, _ in found._cases]
    for tile in (replace(SWAPPED, split=2), replace(two, in_turn=True)):
        assert found.differ_at(tile, (17,)) is None
    assert found.differ_at(PLAIN, (17,)) == 17


@pytest.mark.triton
@pytest.mark.parametrize(
    "around",
    [pytest.param({"norm": True, "silu": True}, marks=pytest.mark.long), {"residual": True}],
)
def test_a_row_has_one_product_whatever_rows(
    around: dict[str, Any], ordered_dots: None, device: torch.device
) -> None:
    from quire.kernels.linear.check import Fusion
    from quire.kernels.linear.fp8_check import differs

    del ordered_dots
    weight = torch.empty(256 if "silu" in around else 64, 256, dtype=E4M3, device=device)
    assert differs(weight, Fusion(20, **around), BF16) is None


@pytest.mark.triton
def test_a_vector_kernel_at_one_row_is_seen_by_its_bits(
    ordered_dots: None, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault that exact mode is there to prevent, put back."""
    from quire.kernels.linear.check import Fusion
    from quire.kernels.linear.fp8_check import differs

    del ordered_dots
    tile = fp8_tuning.exact

    def chosen(n: int, k: int, rows: int, *rest: Any) -> Any:
        return Fp8Gemv(32, 4) if rows == 1 else tile(n, k, rows, *rest)

    monkeypatch.setattr(fp8_tuning, "exact", chosen)
    assert differs(torch.empty(64, 256, dtype=E4M3, device=device), Fusion(3), BF16) == 1
