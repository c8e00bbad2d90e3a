"""How decode attention is launched follows from what a multiprocessor holds."""

import pytest
import torch

from quire.kernels.attention.decode_launch import Heads, Shape, choose

HEADS = Heads(q_heads=16, kv_heads=8, dim=128, dtype=torch.bfloat16, block_size=64)


def shape(rows: int, *, exact: bool) -> Shape:
    return choose(rows, HEADS, 4096, exact=exact)


def test_three_programs_a_multiprocessor_have_stages_for_no_fourth() -> None:
    """With room for four, those launched beside the kernel ahead pile up where that ends first."""
    assert [shape(rows, exact=True).stages for rows in (34, 40, 49, 50, 64)] == [3, 3, 3, 2, 2]
    assert [shape(rows, exact=False).stages for rows in (34, 40, 49, 50, 64)] == [2, 2, 3, 2, 2]
    narrow = Heads(16, 8, 128, torch.bfloat16, 64, narrow=True)
    assert choose(48, narrow, 4096, exact=True).stages == 2
    assert choose(48, HEADS, 4096, exact=True, shared=99 << 10).stages == 2


def test_many_exact_programs_have_two_warps() -> None:
    assert [shape(rows, exact=True).warps for rows in (48, 56, 64, 256)] == [4, 2, 2, 2]
    assert [shape(rows, exact=True).registers for rows in (48, 64)] == [128, 240]


def held(rows: int, heads: Heads = HEADS, *, exact: bool = True, **card: int) -> int:
    """Programs that a multiprocessor has room for: by registers, or by stages."""
    found = choose(rows, heads, 4096, exact=exact, **card)
    return 3 if found.stages == 3 else {168: 5, 240: 4}[found.registers or 0]


@pytest.mark.parametrize("exact", [False, True])
def test_the_last_turn_of_many_programs_leaves_the_fewest_places_empty(exact: bool) -> None:
    found = {rows: held(rows, exact=exact) for rows in range(50, 300)}
    for rows, each in found.items():
        among = (3, 4) if rows * 8 <= 5 * 132 else (3, 4, 5)  # five in a single turn lose
        places = {other: -(-rows * 8 // (132 * other)) * other for other in among}
        assert places[each] == min(places.values())
    rows = (50, 66, 67, 82, 83, 99, 100, 132, 133, 148, 149, 165, 166, 198, 199, 247, 248, 256)
    assert [found[r] for r in rows] == [4, 4, 3, 3, 3, 3, 4, 4, 3, 3, 5, 5, 4, 4, 5, 5, 4, 4]


def test_where_it_was_not_measured_a_multiprocessor_holds_four() -> None:
    assert held(80, Heads(16, 8, 64, torch.bfloat16, 64)) == 4
    assert held(80, shared=99 << 10) == 4
    narrow = choose(80, Heads(16, 8, 128, torch.bfloat16, 64, narrow=True), 4096)
    assert (narrow.registers, narrow.stages) == (None, 3)  # of a narrow cache's own


def test_what_was_asked_for_is_launched() -> None:
    asked = choose(48, HEADS, 4096, exact=True, num_stages=2, num_warps=2)
    assert (asked.stages, asked.warps, asked.registers) == (2, 2, 224)
