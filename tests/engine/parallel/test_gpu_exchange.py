"""The exchange of ranks on GPUs, of which there must be two, or four. See support/gpu_ranks.py."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.gpu


def _with(cards: int) -> Any:
    absent = torch.cuda.device_count() < cards
    return pytest.param(cards, marks=pytest.mark.skipif(absent, reason=f"needs {cards} GPUs"))


@pytest.fixture(params=[_with(2), _with(4)])
def size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def found(case: str, size: int, folder: Path) -> list[dict[str, Any]]:
    from support.gpu_ranks import run_case  # needs triton

    return run_case(case, size, folder)


def test_the_kernel_is_its_twin_and_the_same_on_all_ranks(size: int, tmp_path: Path) -> None:
    assert all(not one["faults"] for one in found("equality", size, tmp_path))


def test_graphs_with_odd_numbers_of_exchanges_take_turns(size: int, tmp_path: Path) -> None:
    for one in found("graphs", size, tmp_path):
        assert all(one["same"]) and all(one["everywhere"])


def test_a_million_exchanges_lose_nothing(size: int, tmp_path: Path) -> None:
    assert found("million", size, tmp_path) == [{"wrong": 0, "late": False}] * size


def test_a_wait_that_is_too_long_ends_and_is_told(size: int, tmp_path: Path) -> None:
    assert found("late", size, tmp_path) == [{"raised": True, "nan": True}] * size
