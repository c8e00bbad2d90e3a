"""Mixtures of experts: who is chosen, what is computed, and what is refused."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quire.engine.errors import ConfigError, ModelError
from quire.engine.model.config import QWEN3_MOE, Experts, ModelConfig
from quire.engine.model.layers.residual import ResidualStream
from quire.engine.model.registry import build_model
from quire.engine.weights.loader import check_checkpoint, load_checkpoint
from quire.engine.weights.random import save_random
from quire.kernels import reference

CPU = torch.device("cpu")
SHAPE = dataclasses.replace(
    ModelConfig.named_shape("tiny"),
    architecture=QWEN3_MOE,
    num_layers=2,
    stored_dtype="float32",
    experts=Experts(4, 2, 24, True, (0,)),
)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def one_by_one(
    x: Tensor, gate_up: Tensor, down: Tensor, experts: Tensor, weights: Tensor
) -> Tensor:
    """The definition, a token and an expert at a time, in double precision."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token, (chosen, shares) in enumerate(zip(experts.tolist(), weights, strict=True)):
        for expert, share in zip(chosen, shares, strict=True):
            gate, up = (gate_up[expert].double() @ x[token].double()).chunk(2)
            made = down[expert].double() @ (torch.nn.functional.silu(gate) * up)
            out[token] += share.double() * made
    return out


def test_of_equal_scores_the_lowest_expert_wins() -> None:
    router = torch.zeros(9, 8)
    router[[2, 6]] = noise(8).abs()  # two that are best, and seven that are equal behind them
    x = noise(5, 8).abs()
    experts, weights = reference.route(x, router, 4, renormalise=True)
    assert experts.tolist() == [[2, 6, 0, 1]] * 5
    assert torch.equal(weights[:, 0], weights[:, 1]) and torch.equal(weights[:, 2], weights[:, 3])
    experts, _ = reference.route(x, torch.zeros(128, 8), 8, renormalise=True)
    assert experts.tolist() == [list(range(8))] * 5


@pytest.mark.parametrize("renormalise", [False, True])
def test_weights_are_shares_of_all_or_of_the_chosen(renormalise: bool) -> None:
    x, router = noise(7, 16), noise(6, 16)
    experts, weights = reference.route(x, router, 3, renormalise=renormalise)
    scores = (x.double() @ router.double().T).softmax(-1)
    expected = scores.topk(3).values
    if renormalise:
        expected = expected / expected.sum(-1, keepdim=True)
    assert torch.equal(experts, scores.topk(3).indices)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "experts",
    [
        torch.tensor([[2], [2], [2], [2], [2], [2]]),
        torch.tensor([[4, 0], [4, 1], [4, 0], [0, 4], [1, 4], [4, 0]]),
        torch.tensor([[0, 1, 2, 3, 4]] * 6),
        torch.tensor([[3, 1], [0, 4], [2, 0], [1, 2], [4, 3], [2, 3]]),
    ],
    ids=["all to one", "empty ones", "every one", "some to each"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_experts_make_is_their_weighted_sum(experts: Tensor, dtype: torch.dtype) -> None:
    x, gate_up, down = (noise(*size).to(dtype) for size in ((6, 16), (5, 48, 16), (5, 16, 24)))
    weights = noise(*experts.shape).abs()
    mixed = reference.mix_experts(x, gate_up, down, experts, weights)
    expected = one_by_one(x, gate_up, down, experts, weights)
    assert mixed.dtype == dtype
    error = (mixed.double() - expected).abs().max() / expected.abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 2e-2)
    alone = reference.mix_experts(x[3:4], gate_up, down, experts[3:4], weights[3:4])
    tight = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(mixed[3:4], alone, rtol=tight, atol=tight * float(alone.abs().max()))


def test_a_missing_or_misshapen_expert_is_told_by_name(tmp_path: Path) -> None:
    save_random(SHAPE, tmp_path)
    file = tmp_path / "model.safetensors"
    sound = load_file(file)
    outline = build_model(SHAPE, cast(Any, reference), dtype=torch.float32, device=CPU)
    load_checkpoint(outline, tmp_path)
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    save_file({key: tensor for key, tensor in sound.items() if key != name}, file)
    with pytest.raises(ModelError, match=rf"{name} is missing"):
        check_checkpoint(outline, tmp_path)
    save_file(sound | {name: sound[name][:-1].clone()}, file)
    with pytest.raises(ModelError, match=rf"{name} has the shape \[23, 128\].* \[24, 128\]"):
        check_checkpoint(outline, tmp_path)
    extra = name.replace(".3.", ".4.")
    save_file(sound | {extra: sound[name].clone()}, file)
    with pytest.raises(ModelError, match=rf"{extra} is not a weight of the model"):
        check_checkpoint(outline, tmp_path)


def test_a_device_without_kernels_for_experts_is_refused_by_name() -> None:
    bare: Any = object()
    with pytest.raises(
        ConfigError, match="Qwen3MoeForCausalLM: this device has no kernels for mix"
    ):
        build_model(SHAPE, bare, dtype=torch.bfloat16, device=torch.device("meta"))


@pytest.mark.parametrize(
    ("field", "experts"),
    [("num_experts 1025", Experts(1025, 2, 24, True)), ("per_tok 33", Experts(64, 33, 24, True))],
)
def test_more_experts_than_the_kernels_take_are_refused_by_name(
    field: str, experts: Experts
) -> None:
    shape = dataclasses.replace(SHAPE, experts=experts)
    with pytest.raises(ConfigError, match=f"{field} is not supported: 1 to"):
        build_model(shape, cast(Any, reference), dtype=torch.bfloat16, device=torch.device("cuda"))


def test_one_row_by_itself_is_asked_for_first_and_may_be_declined() -> None:
    """The norm, the experts and the residual are then its own affair; two ranks share them out."""
    asked: list[dict[str, Any]] = []

    def mix_row(x: Tensor, *_weights: Any, **how: Any) -> Tensor | None:
        asked.append(how)
        return x + 1 if len(x) == 1 else None

    ops = cast(Any, SimpleNamespace(**vars(reference), mix_row=mix_row))
    shape = dataclasses.replace(SHAPE, experts=Experts(4, 2, 24, False))
    model: Any = build_model(shape, ops, dtype=torch.float32, device=CPU)
    mlp, ones = model.layers[0].mlp, torch.ones(128)
    for held in (mlp.router, mlp.gate_up.data, mlp.down.data):
        held.copy_(noise(*held.shape) / 8)
    two = noise(2, 128)
    alone = mlp(ResidualStream(two[:1]), ones, ones, 1e-6).residual
    assert torch.equal(alone, two[:1] + 1)
    both = mlp(ResidualStream(two.clone()), ones, ones, 1e-6).residual
    assert asked == [{"renormalise": False}] * 2
    plain: Any = build_model(shape, cast(Any, reference), dtype=torch.float32, device=CPU)
    for held, other in zip(plain.layers[0].mlp.placements, mlp.placements, strict=True):
        held.target.copy_(other.target)
    assert torch.equal(both, plain.layers[0].mlp(ResidualStream(two), ones, ones, 1e-6).residual)
