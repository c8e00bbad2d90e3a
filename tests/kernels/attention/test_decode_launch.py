"""How decode attention is launched follows from what a multiprocessor holds."""

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


def test_many_exact_programs_have_two_warps_so_that_five_find_a_place() -> None:
    assert [shape(rows, exact=True).warps for rows in (48, 56, 64, 256)] == [4, 2, 2, 2]
    assert [shape(rows, exact=True).registers for rows in (48, 64)] == [128, 200]


def test_what_was_asked_for_is_launched() -> None:
    asked = choose(48, HEADS, 4096, exact=True, num_stages=2, num_warps=2)
    assert (asked.stages, asked.warps, asked.registers) == (2, 2, 200)
