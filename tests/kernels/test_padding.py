"""Rows that pad the library's products in exact mode."""

import torch

from quire.kernels.linear import product_options
from quire.kernels.padding import library_rows, new_rows, padded


def test_a_result_with_room_is_padded_where_it_lies_and_another_is_copied() -> None:
    plain = torch.ones(80, 4)
    roomy = new_rows(plain, 80, 4).fill_(1)
    assert padded(roomy, 128).data_ptr() == roomy.data_ptr()
    assert padded(plain, 128).data_ptr() != plain.data_ptr()
    for x in (plain, roomy):
        assert padded(x, 128).shape == (128, 4)
        assert torch.equal(padded(x, 128)[:80], plain)
    assert padded(plain, 80) is plain


def test_what_a_silu_leaves_has_room_for_the_product_behind_it() -> None:
    """Copies cost two launches a layer of steps whose rows are no multiple of 64."""
    x, gate_up = torch.ones(80, 8), torch.ones(32, 8)
    out = product_options.result(x, gate_up, None, silu=True, out_dtype=None, apart=True)
    assert padded(out, library_rows(80)).data_ptr() == out.data_ptr()
