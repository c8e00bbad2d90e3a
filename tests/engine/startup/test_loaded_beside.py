"""Weights are loaded while everything else is prepared, where nobody uses what is computed then."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from support.tiny_checkpoint import write

from quire.engine.config import EngineConfig
from quire.engine.errors import ModelError
from quire.engine.model.base import CausalModel
from quire.engine.model.config import ModelConfig
from quire.engine.model.layers.parallel import World
from quire.engine.model.layers.placement import Placement
from quire.engine.model.layers.quantized import QuantizingPlacement, new_fp8
from quire.engine.startup import build_rank as module
from quire.engine.startup.build_rank import build_rank
from quire.engine.startup.rank import Rank
from quire.engine.weights import loader
from quire.engine.weights.checkpoint import Checkpoint
from quire.engine.weights.loader import load_checkpoint
from quire.kernels.row_scaled import RowScaled


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineConfig:
    """Of a start on a CPU that takes it for a GPU's."""
    write(tmp_path / "model")
    monkeypatch.setattr(module._Basis, "loaded_beside", True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    return EngineConfig(
        model=str(tmp_path / "model"), device="cpu", num_blocks=8, max_num_seqs=2, max_model_len=64
    )


def start(config: EngineConfig) -> Rank:
    return build_rank(config, 0, World, lambda *_: None)


def targets(model: Any) -> dict[str, torch.Tensor]:
    return {placement.name: placement.target for placement in model.placements()}


def test_the_rest_is_prepared_on_zeros_while_the_weights_come(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    warm = module._warm_runner

    @contextlib.contextmanager
    def held_back(model: CausalModel, directory: Path) -> Iterator[Callable[..., None]]:
        zeros = not any(target.any() for target in targets(model).values())
        assert zeros or not module._Basis.loaded_beside
        events.append("begun")

        def wait(progress: Callable[[int, int], None]) -> None:
            load_checkpoint(model, directory, progress)
            events.append("loaded")

        yield wait

    def warmed(*arguments: Any) -> Any:
        events.append("warmed")
        return warm(*arguments)

    monkeypatch.setattr(module, "loading", held_back)
    monkeypatch.setattr(module, "_warm_runner", warmed)
    rank = start(config)
    assert events == ["begun", "warmed", "loaded"]
    monkeypatch.setattr(module._Basis, "loaded_beside", False)
    expected = targets(start(config).model)
    assert events[3:] == ["begun", "loaded", "warmed"]
    for name, target in targets(rank.model).items():
        assert torch.equal(target, expected[name]), name


def test_a_fault_in_the_weights_ends_the_start(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> None:
        raise ModelError("the disk is gone")

    monkeypatch.setattr(Checkpoint, "read", gone)
    with pytest.raises(ModelError, match="the disk is gone"):
        start(config)


def test_a_fault_elsewhere_ends_the_threads_that_load(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, over = threading.Event(), threading.Event()
    read, stop = Checkpoint.read, loader._Shared.stop

    def slow(self: Checkpoint, *arguments: Any) -> None:
        reading.set()
        assert over.wait(60)
        read(self, *arguments)

    def stopped(self: Any) -> None:
        stop(self)
        over.set()

    def broken(*_: Any) -> None:
        assert reading.wait(60)
        raise ValueError("no room")

    monkeypatch.setattr(loader, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(Checkpoint, "read", slow)
    monkeypatch.setattr(loader._Shared, "stop", stopped)
    monkeypatch.setattr(module, "_warm_runner", broken)
    with pytest.raises(ValueError, match="no room"):
        start(config)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("weights-")]


@pytest.mark.parametrize(
    "change",
    [
        {"exact": True},  # bits are compared first
        {"shape": ModelConfig.named_shape("30B-A3B")},  # experts are chosen by what is computed
        {"world": World(0, 2, cast(Any, object()))},  # fingerprints are compared first
        {"device": torch.device("cpu")},  # whose threads compute
        {"config": EngineConfig(model="random:8B")},  # which are made where they stay
    ],
)
def test_weights_come_first_where_something_depends_on_them(change: dict[str, Any]) -> None:
    config, shape = EngineConfig(model="/a/model"), ModelConfig.named_shape("8B")
    cuda, dtype = torch.device("cuda", 0), torch.bfloat16
    basis = module._Basis(
        config, World(), shape, cuda, dtype, dtype, 64, cast(Any, None), exact=False, ahead=None
    )
    assert basis.loaded_beside
    assert not dataclasses.replace(basis, **change).loaded_beside


def test_what_is_converted_while_loading_has_zeros_for_scales_too() -> None:
    weight = new_fp8(128, 256, device=torch.device("cpu"))
    rows = RowScaled.empty(4, 8, torch.float32, torch.device("cpu"))
    places = slice(0, 128), slice(0, 256)
    converted = QuantizingPlacement("a", (128, 256), weight.data, *places, weight.scale)
    for scale in (weight.scale, rows.scale):
        assert scale is not None
        scale.fill_(torch.nan)
    converted.clear()
    Placement("b", (4, 8), rows, slice(0, 4), slice(0, 8)).clear()
    for scale in (weight.scale, rows.scale):
        assert scale is not None and not scale.any()
    assert not weight.data.float().any() and not rows.data.any()
