"""What exact mode asks of a layer of experts before it serves one."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from quire.kernels.experts import check, mixing
from quire.kernels.weight import Weight

MOST = 18  # rows: unsorted, sorted by one program, and by several
MIXTURE = check.Mixture(per_token=2, renormalise=True)
BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn


def layer(device: torch.device, *, fp8: bool) -> tuple[Weight, Weight]:
    """Four experts: gates and ups, downs."""
    hidden, inner = (128, 128) if fp8 else (64, 32)

    def weight(rows: int, columns: int) -> Weight:
        data = torch.empty(4, rows, columns, dtype=E4M3 if fp8 else BF16, device=device)
        scale = torch.empty(4, rows // 128, columns // 128, device=device)
        return Weight(data, scale if fp8 else None)

    return weight(2 * inner, hidden), weight(hidden, inner)


def test_every_set_of_kernels_is_tried_at_its_ends_and_between() -> None:
    """At the shape 30B-A3B."""
    found = [*check.samples(8192, 8, 128)]
    assert found == sorted(set(found))
    assert {1, 4, 5, 16, 17, 127, 128, 256, 257, 384, 385, 1024, 1537, 8192} <= {*found}
    kinds = {rows: mixing.kernels(rows, 8, 128) for rows in range(1, 8193)}
    assert {kinds[rows] for rows in found} == {*kinds.values()}
    assert len(found) <= 3 * len({*kinds.values()})


@pytest.mark.triton
@pytest.mark.long
@pytest.mark.parametrize("fp8", [False, True])
def test_a_row_is_the_same_beside_any_others(
    fp8: bool, device: torch.device, ordered_dots: None
) -> None:
    del ordered_dots
    assert check.differs(*layer(device, fp8=fp8), MIXTURE, MOST, BF16) is None


@pytest.mark.triton
def test_another_order_of_a_sum_is_seen_by_its_bits(
    device: torch.device, ordered_dots: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here where rows are sorted: gates and ups begin in the middle of K."""
    del ordered_dots
    mix = mixing.mix_experts

    def turned(x: Tensor, gate_up: Tensor, down: Tensor, *chosen: Tensor, **more: Any) -> Tensor:
        if len(x) > 4:
            half = x.shape[1] // 2 + 16
            x, gate_up = x.roll(half, 1), gate_up.roll(half, 2)
        return mix(x, gate_up, down, *chosen, **more)

    monkeypatch.setattr(mixing, "mix_experts", turned)
    assert check.differs(*layer(device, fp8=False), MIXTURE, MOST, BF16) in (1, 3, 4)
