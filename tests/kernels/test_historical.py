"""The historical kernels compute what the fast ones do."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from quire.kernels import reference

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    """A module of the benchmarks, whose folder does not stay on the path."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


historical = load("historical")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu")


def prefill_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v of one sequence of 37 tokens, and its attention by the twin."""
    rng = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(37, heads, 32, generator=rng) for heads in (4, 2, 2))
    pages = [torch.zeros(2, 2, 64, 32) for _ in range(2)]
    for page, x in zip(pages, (k, v), strict=True):
        page[1, :, :37] = x.transpose(0, 1)
    one = torch.ones(1, 1, dtype=torch.int32)
    starts = torch.tensor([0, 37])
    wanted = reference.prefill_attention(q, *pages, one, starts, starts[1:], 0.2, 37, 37)
    return q, k, v, wanted


def test_standard_prefill() -> None:
    q, k, v, wanted = prefill_case()
    torch.testing.assert_close(historical.standard_prefill(q, k, v, 0.2), wanted)


@pytest.mark.triton
def test_naive_triton_prefill() -> None:
    naive_triton_prefill = load("naive_prefill").naive_triton_prefill
    q, k, v, wanted = prefill_case()
    if torch.cuda.is_available():
        q, k, v = q.cuda(), k.cuda(), v.cuda()
    torch.testing.assert_close(naive_triton_prefill(q, k, v, 0.2).cpu(), wanted)


def test_decode(paged: Any) -> None:
    contexts = [1, 0, 16, 40]
    cache = paged(contexts, kv_heads=2, block_size=16, dim=32, dtype=torch.float32)
    q = torch.randn(4, 6, 32)
    rest = (cache.k_cache, cache.v_cache, cache.block_tables, cache.context_lens, 0.2)
    wanted = reference.decode_attention(q, *rest, 40)
    torch.testing.assert_close(historical.naive_decode(q, *rest), wanted)
    torch.testing.assert_close(historical.vectorised_decode(q, *rest, 40), wanted)
