"""`tools/chaos_ranks.py`, in short: one round of it."""

import importlib.util
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
from support.free_ports import free_ports

TOOLS = Path(__file__).resolve().parents[3] / "tools"


@pytest.fixture
def chaos(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("chaos_ranks", TOOLS / "chaos_ranks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FRESH", "TESTS_NOT_FRESH")  # seconds of CPU less
    monkeypatch.setattr(module, "shared_memory", set)  # other tests' is there too
    return module


def test_a_round_finds_every_process_and_all_end_with_the_one_that_is_killed(
    chaos: ModuleType,
) -> None:
    args = Namespace(device="cpu", nodes=1, ranks=2, model="random:tiny")
    seen = chaos.one_round(args, "rank 1", False, 2, free_ports(2))
    assert seen.wrong == [] and seen.exits == [1]
    assert len(seen.codes) == chaos.STREAMS
