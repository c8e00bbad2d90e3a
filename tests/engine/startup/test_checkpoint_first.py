"""A checkpoint that is not the configuration's is refused before memory is taken for weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_checkpoint import CONFIG, Change, write
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from quire.engine.config import EngineConfig
from quire.engine.errors import ModelError
from quire.engine.startup.build_engine import build_engine

FILE = "model.safetensors"
ALLOCATING = {"aten.empty.memory_format", "aten.slice.Tensor"}
FILLING = {f"aten.{name}.default" for name in ("scalar_tensor", "view", "expand", "copy_")}
DOWN = "model.layers.1.mlp.down_proj.weight"


class Allocated(TorchDispatchMode):
    """Notes every tensor that torch makes with memory behind it, and what made those without."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.on_meta: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            if made.device.type == "meta":
                self.on_meta.add(str(func))
            else:
                self.sizes.append(made.nbytes)
        return made


def build(directory: Path) -> Allocated:
    """What was allocated; raises as build_engine does, with the sizes noted."""
    config = EngineConfig(
        model=str(directory),
        device="cpu",
        max_num_seqs=2,
        max_num_batched_tokens=16,
        block_size=16,
        num_blocks=8,
    )
    with Allocated() as allocated:
        try:
            build_engine(config, lambda *_: None)
        except ModelError as error:
            error.add_note(json.dumps(allocated.sizes))
            raise
    return allocated


def without(tensors: dict[str, Tensor]) -> None:
    del tensors[DOWN]


def more(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.2.mlp.down_proj.weight"] = torch.zeros(1)


def misshapen(tensors: dict[str, Tensor]) -> None:
    tensors[DOWN] = torch.zeros(tensors[DOWN].shape[::-1])


def integers(tensors: dict[str, Tensor]) -> None:
    tensors[DOWN] = tensors[DOWN].to(torch.int8)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (without, f"{DOWN} is missing"),
        (more, f"{FILE}: model.layers.2.mlp.down_proj.weight is not a weight of the model"),
        (misshapen, f"{FILE}: {DOWN} has the shape"),
        (integers, f"{FILE}: {DOWN}: dtype I8 is not supported"),
    ],
)
def test_what_does_not_fit_is_told_before_a_weight_is_allocated(
    tmp_path: Path, edit: Change, words: str
) -> None:
    write(tmp_path, edit)
    with pytest.raises(ModelError) as caught:
        build(tmp_path)
    assert words in str(caught.value)
    made = json.loads(caught.value.__notes__[0])
    assert sum(made) < 1024  # the rotary frequencies; the weights take 111,488 bytes


def test_one_that_fits_is_loaded(tmp_path: Path) -> None:
    write(tmp_path)
    assert max(build(tmp_path).sizes) >= CONFIG.vocab_size * CONFIG.hidden_size * 4


def test_shapes_are_made_without_arithmetic_which_would_load_a_compiler(tmp_path: Path) -> None:
    write(tmp_path)
    assert build(tmp_path).on_meta <= ALLOCATING | FILLING
