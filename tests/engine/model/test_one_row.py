"""One row goes from attention to attention by one operation, where a device has it."""

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from support import tiny_checkpoint
from support.single_prompt import batch_for, greedy_tokens, new_cache
from torch import Tensor

from quire.engine.model.base import CausalModel
from quire.engine.model.config import PHI3, QWEN2, QWEN3_MOE, Experts, ModelConfig
from quire.engine.model.layers.parallel import World
from quire.engine.model.registry import build_model
from quire.engine.weights.random import fill_random
from quire.kernels import reference
from quire.kernels.linear.row_launch import Room, RowUnavailable, Sizes
from quire.kernels.reference.linear import between_attentions
from quire.kernels.weight import RowWeights

CPU, FP32 = torch.device("cpu"), torch.float32
CONFIG = dataclasses.replace(
    tiny_checkpoint.CONFIG,
    hidden_size=64,
    num_layers=3,
    num_q_heads=8,
    intermediate_size=96,
    initializer_range=0.2,
)
PROMPT = [(7 * i) % CONFIG.vocab_size for i in range(1, 20)]
MERGED = dataclasses.replace(CONFIG, architecture=PHI3)


class RowDevice:
    """The reference with the operation of one row, which notes what it is asked for. takes: not
    declined; launches: its driver does."""

    def __init__(self, *, takes: bool = True, launches: bool = True) -> None:
        self.takes, self.launches = takes, launches
        self.rooms: list[tuple[int, Sizes]] = []
        self.given: list[tuple[int, tuple[int, ...] | None]] = []  # rooms, and the next qkv's sizes
        names = {"row_rooms": self._rooms, "between_attentions": self._between}
        self.ops = cast(Any, SimpleNamespace(**vars(reference), **names))

    def _rooms(
        self, layers: int, sizes: Sizes, dtype: torch.dtype, device: torch.device
    ) -> list[Room] | None:
        assert (dtype, device) == (FP32, CPU)
        self.rooms.append((layers, sizes))
        empty = torch.empty(0)
        return [Room(empty, index) for index in range(layers)] if self.takes else None

    def _between(
        self, attended: Tensor, residual: Tensor, weights: RowWeights, eps: float, room: Room
    ) -> tuple[Tensor, Tensor | None]:
        if not self.launches:
            raise RowUnavailable("no such launch")
        qkv = weights.next_qkv
        self.given.append((room.hidden, None if qkv is None else tuple(qkv.shape)))
        return between_attentions(attended, residual, weights, eps)


def model_on(ops: Any, config: ModelConfig = CONFIG, world: World | None = None) -> CausalModel:
    model = build_model(config, ops, dtype=FP32, device=CPU, world=world)
    fill_random(model, seed=3)
    return model


@pytest.mark.parametrize("config", [CONFIG, MERGED], ids=["qwen3", "phi3"])
def test_one_row_by_one_operation_is_what_its_products_make(config: ModelConfig) -> None:
    device = RowDevice()
    tokens, logits = greedy_tokens(model_on(device.ops, config), PROMPT, 4)
    wanted, plain = greedy_tokens(model_on(reference, config), PROMPT, 4)
    assert tokens == wanted and torch.equal(logits, plain)
    # The prompt went the usual way; each token behind it layer by layer, each with its own room.
    assert device.rooms == [(3, Sizes(64, 128, 96))] * 3
    assert device.given == [(0, (192, 64)), (1, (192, 64)), (2, None)] * 3


def test_chosen_layers_follow_one_another() -> None:
    """As warm-up runs them: the last one chosen has no layer behind it."""
    device = RowDevice()
    model, plain = model_on(device.ops), model_on(reference)
    for layers in ([0], [0, 2]):
        caches = [new_cache(one, 4) for one in (model, plain)]
        batch = batch_for([5], 0, caches[0])
        made, wanted = (
            one.forward(batch, kv, layers) for one, kv in zip((model, plain), caches, strict=True)
        )
        assert torch.equal(made, wanted)
    assert device.given == [(0, None), (0, (192, 64)), (1, None)]


@pytest.mark.parametrize("how", ["takes", "launches"])
def test_a_device_may_decline_it(how: str) -> None:
    device = RowDevice(**{how: False})
    found, wanted = (greedy_tokens(model_on(ops), PROMPT, 3) for ops in (device.ops, reference))
    assert torch.equal(found[1], wanted[1])
    assert len(device.rooms) == 2 and not device.given


@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(CONFIG, architecture=QWEN2),  # biases, which no product takes
        dataclasses.replace(CONFIG, architecture=QWEN3_MOE, experts=Experts(5, 2, 24, True, (0,))),
    ],
    ids=["biases", "experts"],
)
def test_layers_of_other_kinds_go_product_by_product(config: ModelConfig) -> None:
    device = RowDevice()
    found, wanted = (
        greedy_tokens(model_on(ops, config), PROMPT, 3) for ops in (device.ops, reference)
    )
    assert torch.equal(found[1], wanted[1])
    assert not device.rooms and not device.given


def test_so_do_rows_of_which_each_rank_has_a_part() -> None:
    device = RowDevice()

    class Alone:
        """An exchange of two ranks that have the same part."""

        def gather(self, x: Tensor) -> Tensor:
            return torch.stack([x, x])

    model = model_on(device.ops, world=World(0, 2, Alone()))
    kv = new_cache(model, 4)
    model.forward(batch_for([5], 0, kv), kv)
    assert not device.rooms and not device.given


def test_two_rows_go_product_by_product() -> None:
    device = RowDevice()
    model = model_on(device.ops)
    kv = new_cache(model, 4)
    model.forward(batch_for([5, 6], 0, kv), kv)
    assert not device.rooms and not device.given
