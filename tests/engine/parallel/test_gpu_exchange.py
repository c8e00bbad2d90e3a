"""The exchange of ranks on GPUs, of which there must be two. See support/gpu_ranks.py."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


def found(case: str, folder: Path) -> list[dict[str, Any]]:
    from support.gpu_ranks import run_case  # needs triton

    return run_case(case, 2, folder)


def test_the_kernel_is_its_twin_and_the_same_on_all_ranks(tmp_path: Path) -> None:
    assert all(not one["faults"] for one in found("equality", tmp_path))


def test_graphs_with_odd_numbers_of_exchanges_take_turns(tmp_path: Path) -> None:
    for one in found("graphs", tmp_path):
        assert all(one["same"]) and all(one["everywhere"])


def test_a_million_exchanges_lose_nothing(tmp_path: Path) -> None:
    assert found("million", tmp_path) == [{"wrong": 0, "late": False}] * 2


def test_a_wait_that_is_too_long_ends_and_is_told(tmp_path: Path) -> None:
    assert found("late", tmp_path) == [{"raised": True, "nan": True}] * 2
