"""The CPU's own products: right, and a row's bits its own, whatever stands beside it."""

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from quire.kernels import reference
from quire.kernels.cpu.library import (
    LEVELS,
    LibraryUnavailable,
    cache_directory,
    load,
    machine_level,
)
from quire.kernels.cpu.ops import CpuOps
from quire.kernels.cpu.products import Products
from quire.kernels.ops import has_experts, has_fp8
from quire.kernels.row_scaled import RowScaled

BF16, FP32 = torch.bfloat16, torch.float32
KINDS = ("bf16", "float32", "int8 of bf16", "int8 of float32")
SHAPES = ((1, 1), (3, 7), (4, 16), (9, 33), (64, 100), (130, 256), (66, 1040))  # outputs, width


def _levels() -> list[str]:
    """What this machine can run: its own level and those below."""
    try:
        best = machine_level()
    except LibraryUnavailable:
        return []
    return [*itertools.dropwhile(lambda level: level != best, LEVELS)]


pytestmark = pytest.mark.skipif(
    not _levels() or shutil.which("cc") is None, reason="needs AVX2 and a C compiler"
)


@pytest.fixture(scope="module", params=_levels())
def ops(request: pytest.FixtureRequest) -> CpuOps:
    """From where servers keep it: a compiler takes seconds."""
    return CpuOps(load(request.param, cache_directory()), request.param)


@pytest.fixture(scope="module")
def products(ops: CpuOps) -> Products:
    return ops.products


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _draw(kind: str, rows: int, outputs: int, width: int) -> tuple[Tensor, Tensor, Tensor | None]:
    random = torch.Generator().manual_seed(rows * 1000 + outputs + width)
    x = torch.randn(rows, width, generator=random)
    x = x.to(BF16) if kind in ("bf16", "int8 of bf16") else x
    if not kind.startswith("int8"):
        return x, torch.randn(outputs, width, generator=random).to(x.dtype), None
    weight = torch.randint(-127, 128, (outputs, width), generator=random, dtype=torch.int8)
    return x, weight, torch.rand(outputs, generator=random) + 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_product(products: Products, kind: str) -> None:
    """Against fp64, at the edges of tiles: rows, outputs and widths that nothing divides."""
    for (outputs, width), rows in itertools.product(SHAPES, (1, 2, 3, 5, 8, 23)):
        x, weight, scale = _draw(kind, rows, outputs, width)
        exact = x.double() @ weight.double().t() * (1.0 if scale is None else scale.double())
        room = x.double().abs() @ weight.double().abs().t() * (1.0 if scale is None else scale)
        sums = products(x, weight, scale, FP32)
        assert sums.dtype == FP32
        assert bool(((sums - exact).abs() <= 1e-6 * room + 1e-30).all()), (rows, outputs, width)
        assert torch.equal(products(x, weight, scale, BF16), sums.to(BF16))


@pytest.mark.parametrize("kind", KINDS)
def test_a_rows_bits_are_its_own(products: Products, kind: str) -> None:
    """Alone, in a batch of any size and place, and on any number of threads."""
    for outputs, width in ((130, 256), (67, 1040), (515, 96)):
        x, weight, scale = _draw(kind, 70, outputs, width)
        with threads(1):
            alone = torch.cat([products(row, weight, scale, FP32) for row in x.split(1)])
        for count, rows in itertools.product((1, 2, 3), (2, 3, 5, 8, 16, 70)):
            with threads(count):
                for first in range(0, 70 - rows + 1, rows):
                    some = slice(first, first + rows)
                    together = products(x[some], weight, scale, FP32)
                    assert torch.equal(together, alone[some]), (count, rows, first)


def test_strides_of_x_are_heeded(products: Products) -> None:
    x, weight, _ = _draw("bf16", 6, 20, 64)
    every_other = torch.stack((x, -x), dim=1)[:, 0]
    assert not every_other.is_contiguous()
    assert torch.equal(products(every_other, weight, None, FP32), products(x, weight, None, FP32))


def test_numbers_that_are_not_finite_stay_so(products: Products) -> None:
    x, weight, _ = _draw("bf16", 3, 8, 40)
    x[1, 3], x[2, 4] = float("nan"), float("inf")
    y = products(x, weight, None, BF16)
    assert bool(y[0].isfinite().all() and y[1].isnan().all() and y[2].isinf().all())


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_linear_is_the_twins(ops: CpuOps, dtype: torch.dtype) -> None:
    """With all that stands around a product; what is rounded is rounded where the twin rounds."""
    random = torch.Generator().manual_seed(5)
    x, weight, residual = (
        torch.randn(*shape, generator=random).to(dtype) for shape in ((5, 96), (48, 96), (5, 48))
    )
    norm = (1 + 0.2 * torch.randn(96, generator=random)).to(dtype)
    near = {"rtol": 0.02, "atol": 0.05} if dtype == BF16 else {"rtol": 1e-5, "atol": 1e-4}
    for options in (
        {},
        {"norm_weight": norm, "eps": 1e-6},
        {"norm_weight": norm, "eps": 1e-6, "silu": True},
        {"out_dtype": FP32},
    ):
        mine, twin = (which.linear(x, weight, **options) for which in (ops, reference))
        assert mine.dtype == twin.dtype
        torch.testing.assert_close(mine, twin, **near)
    mine, twin = (which.linear(x, weight, residual=residual) for which in (ops, reference))
    torch.testing.assert_close(mine, twin, **near)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_around_a_product_is_a_rows_own_too(ops: CpuOps, kind: str) -> None:
    x, weight, scale = _draw(kind, 40, 70, 100)
    stored = weight if scale is None else RowScaled(weight, scale, x.dtype)
    random = torch.Generator().manual_seed(6)
    norm, residual = torch.randn(100, generator=random), torch.randn(40, 70, generator=random)
    ways: list[dict[str, Any]] = [
        {"norm_weight": norm.to(x.dtype), "eps": 1e-6, "silu": True},
        {"residual": residual.to(x.dtype)},
    ]
    for way in ways:

        def run(first: int, last: int, way: dict[str, Any] = way) -> Tensor:
            mine = {k: v[first:last] if k == "residual" else v for k, v in way.items()}
            return ops.linear(x[first:last], stored, **mine)

        alone = torch.cat([run(row, row + 1) for row in range(40)])
        for count, rows in itertools.product((1, 2), (2, 5, 16, 40)):
            with threads(count):
                for first in range(0, 40 - rows + 1, rows):
                    assert torch.equal(run(first, first + rows), alone[first : first + rows])


def test_silu_is_right_wherever_its_gate_stands(ops: CpuOps) -> None:
    gate = torch.cat((torch.linspace(-120, 120, 999), torch.tensor([-1e30, 0.0, 1e30])))
    x, up = torch.eye(1), torch.full_like(gate, 2.0)
    y = ops.linear(x, torch.cat((gate, up))[:, None], silu=True)[0]
    torch.testing.assert_close(y, torch.nn.functional.silu(gate) * up, rtol=1e-6, atol=1e-35)


def test_logits_keep_what_the_sums_hold(ops: CpuOps) -> None:
    x, weight, _ = _draw("bf16", 4, 32, 128)
    logits = ops.linear(x, weight, out_dtype=FP32)
    assert not torch.equal(logits, logits.to(BF16).float())


def test_other_types_are_left_to_the_twin(ops: CpuOps) -> None:
    x, weight, _ = _draw("bf16", 4, 32, 128)
    wide = ops.linear(x.double(), weight.double())
    assert torch.equal(wide, reference.linear(x.double(), weight.double()))


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_experts_take_these_products_and_a_token_s_bits_are_its_own(
    ops: CpuOps, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(2)
    assert has_experts(ops) and has_fp8(ops)  # type: ignore[arg-type]
    x, gate_up, down = (
        torch.randn(size, generator=generator).to(dtype)
        for size in ((9, 48), (4, 64, 48), (4, 48, 32))
    )
    experts = torch.tensor([[place % 4, (place + 1 + place // 4) % 4] for place in range(9)])
    weights = torch.rand(9, 2, generator=generator)
    mixed = ops.mix_experts(x, gate_up, down, experts, weights)
    expected = reference.mix_experts(x, gate_up, down, experts, weights)
    near = 1e-5 if dtype == FP32 else 2e-2
    torch.testing.assert_close(mixed, expected, rtol=near, atol=near * float(expected.abs().max()))
    for row in range(9):
        some = slice(row, row + 1)
        alone = ops.mix_experts(x[some], gate_up, down, experts[some], weights[some])
        assert torch.equal(alone, mixed[some])
