"""What captured graphs take is kept free of cache blocks, and looked at afterwards."""

import logging
from dataclasses import replace

import pytest
import torch
from support.small_engine import model_config

from quire.engine.config import EngineConfig
from quire.engine.errors import CapacityError
from quire.engine.startup import sizing

GIB = 1 << 30
CARD = torch.device("cuda", 0)
CONFIG = EngineConfig(max_num_seqs=64)
LARGE = replace(model_config(vocab=150_000, layers=28), hidden_size=1024, intermediate_size=3072)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten GiB, one of them another process's, two torch's own."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (7 * GIB, 10 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 2 * GIB)


@pytest.mark.usefixtures("card")
def test_the_budget_leaves_room_for_graphs() -> None:
    graphs = sizing.graph_bytes(CONFIG, LARGE, torch.bfloat16)
    budget, what = sizing.gpu_budget(CONFIG, CARD, 3 * GIB, graphs)
    assert budget == 9 * GIB - GIB - 3 * GIB - graphs
    assert "GiB for captured graphs" in what
    with pytest.raises(CapacityError, match="captured graphs"):
        sizing.cache_blocks(CONFIG, LARGE, torch.bfloat16, 0, what)


def test_it_grows_with_what_is_captured() -> None:
    base = sizing.graph_bytes(CONFIG, LARGE, torch.bfloat16)
    logits = 64 * LARGE.vocab_size * 4
    assert base > 2 * logits, "padded rows, and the copy that log-probabilities take"
    for config, model in (
        (CONFIG.replace(max_num_seqs=128), LARGE),
        (CONFIG, replace(LARGE, num_layers=56)),
        (CONFIG, replace(LARGE, vocab_size=300_000)),
    ):
        assert sizing.graph_bytes(config, model, torch.bfloat16) > base
    assert sizing.graph_bytes(CONFIG.replace(enforce_eager=True), LARGE, torch.bfloat16) == 0


def test_what_capture_took_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        sizing.verify_graphs(GIB, 2 * GIB)
        sizing.verify_graphs(3 * GIB, 2 * GIB)
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.INFO, logging.WARNING]
    assert "3.00 GiB of the 2.00 GiB" in caplog.records[1].getMessage()
    assert "gpu_memory_utilization" in caplog.records[1].getMessage()
