"""On the GPU: in exact mode no way to serve a request changes a bit of it."""

from collections.abc import Iterator

import pytest
import torch
from support.benchmark_code import exact_mode

pytestmark = pytest.mark.gpu

SHAPE = "0.6B"


@pytest.fixture
def fewer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of the benchmark's sizes some."""
    monkeypatch.setattr(exact_mode, "CHUNKS", (1, 7, 16, 64, 513))
    monkeypatch.setattr(exact_mode, "BATCHES", (2, 8, 64, 256))
    yield
    torch.cuda.empty_cache()


def test_every_pair_is_equal_bit_for_bit(fewer: None) -> None:
    del fewer
    compared = {}
    for result in exact_mode.Pairs(f"random:{SHAPE}", "bfloat16").all():
        assert (result.other_logits, result.other_tokens) == (0, 0), result
        compared[result.pair] = result.compared
    assert min(compared.values()) >= 96
    assert {"resumed at every token", "n = 4", "preempted, eager"} <= set(compared)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_launch_for_a_weight_has_its_bits(dtype: torch.dtype) -> None:
    """What the library does otherwise is dropped; no tile ever differs."""
    from quire.engine.model.config import ModelConfig
    from quire.engine.runner.exact_mode import products_of
    from quire.kernels.linear.check import Fusion, check
    from quire.kernels.linear.exact import ExactProducts

    for shape in ("0.6B", "8B"):
        products = products_of(ModelConfig.named_shape(shape), dtype, None)
        for one in {product.kind: product for product in products}.values():
            weight = torch.empty(one.weight.data.shape, dtype=dtype, device="cuda")
            around = Fusion(
                512 if one.sampled else 8192, one.norm, one.residual, one.silu, one.out_dtype
            )
            chosen = ExactProducts()
            assert all(found.kept for found in check(weight, around, chosen)), one.module
            assert check(weight, around, chosen) == [], one.module


def test_rows_that_choose_the_split_are_seen_by_their_bits() -> None:
    """The fault that exact mode is there to prevent, put back: the fast table's choice."""
    from quire.kernels.linear import tuning
    from quire.kernels.linear.check import Bits, Fusion

    weight = torch.empty(1024, 3072, dtype=torch.bfloat16, device="cuda")
    bits = Bits(weight, Fusion(64, residual=True), 1)
    chosen = {
        rows: tuning.choose(1024, 3072, rows, torch.bfloat16, False) for rows in (1, 2, 8, 32)
    }
    assert any(bits.differ_at(variant, (rows,)) for rows, variant in chosen.items())
