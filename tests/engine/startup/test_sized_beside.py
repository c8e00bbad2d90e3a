"""The cache is sized while kernels are compiled, where nothing that it takes depends on them."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch

from quire.engine.config import EngineConfig
from quire.engine.model.config import ModelConfig
from quire.engine.model.layers.parallel import World
from quire.engine.runner import compile_ahead
from quire.engine.startup import build_rank as module
from quire.engine.startup.build_rank import build_rank

jit = pytest.importorskip("triton.runtime.jit")


class Ahead:
    """Stands in for processes that compile."""

    def __init__(self, events: list[str], *, at_work: bool) -> None:
        self._events, self.at_work = events, at_work

        self.waited = 0.0

    @contextlib.contextmanager
    def awaited(self, _progress: Callable[[float], None]) -> Iterator[None]:
        self._events.append("each kernel")
        yield

    def wait(self, _progress: Callable[[float], None]) -> int:
        self._events.append("all kernels")
        return 1


def events_of(monkeypatch: pytest.MonkeyPatch, *, at_work: bool) -> list[str]:
    """What a start does: has the kernels, and sizes the cache with launches or without any."""
    events: list[str] = []
    launched, size = jit.JITFunction.run, module._size_cache

    def sized(*arguments: Any) -> int:
        events.append("launches" if jit.JITFunction.run is launched else "no launches")
        return size(*arguments)

    monkeypatch.setattr(compile_ahead, "begin", lambda *_, **__: Ahead(events, at_work=at_work))
    monkeypatch.setattr(module, "_size_cache", sized)
    config = EngineConfig(
        model="random:tiny", device="cpu", num_blocks=8, max_num_seqs=2, max_model_len=64
    )
    build_rank(config, 0, World, lambda *_: None, lambda blocks, _print: blocks)
    assert jit.JITFunction.run is launched
    return events


def test_the_largest_step_launches_nothing_while_kernels_are_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sized_beside = ["no launches", "each kernel", "all kernels"]
    assert events_of(monkeypatch, at_work=True) == sized_beside
    assert events_of(monkeypatch, at_work=False) == ["launches"]


@pytest.mark.parametrize(
    "change",
    [
        {"ahead": None},
        {"exact": True},  # bits are compared first
        {"shape": ModelConfig.named_shape("30B-A3B")},  # torch looks experts up by what is chosen
        {"world": World(0, 2, cast(Any, object()))},  # what ranks exchange is awaited
    ],
)
def test_it_launches_what_something_else_waits_for(change: dict[str, Any]) -> None:
    config, shape = EngineConfig(model="random:8B"), ModelConfig.named_shape("8B")
    cpu, dtype = torch.device("cpu"), torch.bfloat16
    ahead = cast(Any, Ahead([], at_work=True))
    basis = module._Basis(
        config, World(), shape, cpu, dtype, dtype, 64, cast(Any, None), exact=False, ahead=ahead
    )
    assert basis.sized_beside
    assert not dataclasses.replace(basis, **change).sized_beside
