"""Int8 rows with scales: the nearest to what was put in, and looked up as they are multiplied."""

import pytest
import torch

from quire.kernels import reference
from quire.kernels.row_scaled import RowScaled

CPU = torch.device("cpu")


def _filled(numbers: torch.Tensor, dtype: torch.dtype = torch.float32) -> RowScaled:
    rows = RowScaled.empty(*numbers.shape, dtype, CPU)
    rows.copy_(numbers)
    return rows


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_no_number_is_further_than_half_a_step(stored: torch.dtype) -> None:
    numbers = torch.randn(40, 96, generator=torch.Generator().manual_seed(1)).to(stored)
    numbers[3], numbers[4] = 0, numbers[4] * 1e-3
    rows = _filled(numbers)
    wide = numbers.float()
    assert torch.equal(rows.scale, wide.abs().amax(1) / 127)
    assert bool(((rows.float() - wide).abs() <= 0.5001 * rows.scale[:, None]).all())
    assert not rows.float()[3].any()
    assert rows.nbytes == 40 * 96 + 40 * 4


def test_parts_are_written_through() -> None:
    numbers = torch.randn(10, 8, generator=torch.Generator().manual_seed(2))
    whole, pieces = _filled(numbers), RowScaled.empty(10, 8, torch.float32, CPU)
    for first in (0, 4, 7):
        part = pieces[first : min(first + 4, 10)]
        assert isinstance(part, RowScaled)
        part.copy_(numbers[first : first + 4])
    assert torch.equal(whole.data, pieces.data)
    assert torch.equal(whole.scale, pieces.scale)
    pieces[8:] = 0
    assert not pieces.float()[8:].any() and pieces.float()[:8].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_shows_in_its_scale(value: float) -> None:
    numbers = torch.ones(3, 5)
    numbers[1, 2] = value
    assert _filled(numbers).scale.isfinite().tolist() == [True, False, True]


def test_rows_that_are_looked_up_are_those_that_are_multiplied() -> None:
    numbers = torch.randn(20, 16, generator=torch.Generator().manual_seed(3))
    rows = _filled(numbers, torch.bfloat16)
    ids = torch.tensor([3, 0, 19, 3], dtype=torch.int32)
    assert torch.equal(rows[ids], rows.float()[ids].bfloat16())
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(4))
    products = reference.linear(x, rows)
    torch.testing.assert_close(products, x @ rows.float().t(), rtol=1e-5, atol=1e-5)
