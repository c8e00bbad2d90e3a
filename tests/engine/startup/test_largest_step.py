"""What the largest step takes is the same whatever the threads that load weights hold meanwhile."""

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from support.small_engine import model_config

from quire.engine.config import EngineConfig
from quire.engine.errors import CapacityError
from quire.engine.model.layers.parallel import World
from quire.engine.model.registry import build_model
from quire.engine.startup import build_rank as module
from quire.engine.startup import largest_step
from quire.engine.startup.largest_step import Baseline, peak_bytes
from quire.engine.weights import loader
from quire.kernels import reference

GIB, MIB = 1 << 30, 1 << 20
MINE, THEIRS = 7, 8  # streams
CONFIG = EngineConfig(
    model="/a/model", max_num_seqs=4, max_num_batched_tokens=32, max_model_len=64, num_blocks=None
)
SHAPE = model_config()


class Card:
    """Stands in for torch's view of a GPU of 80 GiB, two of them another process's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reserved = {MINE: 16 * GIB}
        self.peak = self.outside = 0
        stream = SimpleNamespace(cuda_stream=MINE)
        for name, stand_in in {
            "memory_snapshot": self._segments,
            "memory_reserved": lambda _device: sum(self.reserved.values()),
            "max_memory_reserved": lambda _device: self.peak,
            "mem_get_info": self._info,
            "current_stream": lambda _device: stream,
            "reset_peak_memory_stats": lambda _device: None,
            "synchronize": lambda _device: None,
            "empty_cache": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)

    def take(self, stream: int, nbytes: int) -> None:
        self.reserved[stream] = self.reserved.get(stream, 0) + nbytes
        self.peak = max(self.peak, sum(self.reserved.values()))

    def _segments(self) -> list[dict[str, int]]:
        return [{"stream": one, "total_size": held} for one, held in self.reserved.items()]

    def _info(self, _device: torch.device) -> tuple[int, int]:
        return 78 * GIB - sum(self.reserved.values()) - self.outside, 80 * GIB


def blocks_of(monkeypatch: pytest.MonkeyPatch, *, held: int, outside: int) -> int:
    """The cache's blocks where loaders have taken this many bytes through torch, and besides."""
    card = Card(monkeypatch)
    model = build_model(SHAPE, reference, dtype=torch.float32, device=torch.device("cpu"))
    before = Baseline.read(torch.device("cuda", 0))
    largest = largest_step._largest_step

    def stepped(*arguments: Any) -> Any:
        card.take(THEIRS, held)
        card.outside = outside
        card.take(MINE, 100 * MIB)
        return largest(*arguments)

    monkeypatch.setattr(largest_step, "_largest_step", stepped)
    state = cast(Any, SimpleNamespace(seeds=SimpleNamespace(device=torch.device("cuda", 0))))
    blocks = module._size_cache(CONFIG, SHAPE, model, state, torch.float32, 64, before)
    monkeypatch.undo()
    return blocks


def test_the_cache_s_size_does_not_depend_on_what_loaders_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = blocks_of(monkeypatch, held=0, outside=0)
    assert alone > 2
    assert blocks_of(monkeypatch, held=GIB // 2, outside=0) == alone
    assert blocks_of(monkeypatch, held=0, outside=3 * MIB) == alone  # kernels that they launch


def test_a_step_with_nobody_beside_it_is_all_that_torch_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Card(monkeypatch)
    card.take(THEIRS, GIB)
    model = build_model(SHAPE, reference, dtype=torch.float32, device=torch.device("cpu"))
    assert peak_bytes(CONFIG, model, torch.float32, 64) == 17 * GIB


@pytest.mark.parametrize("model", ["random:tiny", "files"])
def test_a_loader_s_want_of_memory_is_refused_clearly(
    model: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.tiny_checkpoint import write

    def none_left(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    write(tmp_path / "files")
    monkeypatch.setattr(loader._CpuLane, "move", none_left)
    monkeypatch.setattr(module, "fill_random", none_left)
    name = model if model.startswith("random") else str(tmp_path / model)
    config = EngineConfig(model=name, device="cpu", num_blocks=8, max_num_seqs=2, max_model_len=64)
    with pytest.raises(CapacityError, match="out of memory for loading the weights: "):
        module.build_rank(config, 0, World, lambda *_: None)


def test_a_capture_s_want_of_memory_is_refused_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **_more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module.Runner, "warm_up", none_left)
    config = EngineConfig(
        model="random:tiny", device="cpu", num_blocks=8, max_num_seqs=2, max_model_len=64
    )
    with pytest.raises(CapacityError, match=r"captured graphs: .*lower max_num_seqs = 2$"):
        module.build_rank(config, 0, World, lambda *_: None)


@pytest.mark.gpu
def test_what_another_thread_s_stream_holds_is_not_the_step_s() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    model = build_model(SHAPE, reference, dtype=torch.float32, device=device)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        held: list[torch.Tensor] = []

        def load() -> None:
            with torch.cuda.stream(torch.cuda.Stream(device)):
                held.append(torch.empty(512 * MIB, dtype=torch.uint8, device=device))

        def measured(*, beside: bool) -> int:
            torch.cuda.empty_cache()
            before = Baseline.read(device)
            if beside:
                thread = threading.Thread(target=load)
                thread.start()
                thread.join()
            return peak_bytes(CONFIG, model, torch.float32, 64, before)

        measured(beside=False)  # what libraries keep
        assert measured(beside=True) == measured(beside=False) - 512 * MIB
