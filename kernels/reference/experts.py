"""Mixtures of experts in plain PyTorch: which experts a token uses, and the sum of their
results.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.kernels.reference.fp8 import linear_fp8
from quire.kernels.reference.linear import linear
from quire.kernels.weight import Weight


def route(x: Tensor, router: Tensor, per_token: int, *, renormalise: bool) -> tuple[Tensor, Tensor]:
    """The experts of each token and their weights, the best first (Shazeer et al., 2017).

    x: [T, H]; router: [E, H] -> experts [T, per_token] int64, weights [T, per_token] fp32. Scores
    are the softmax over all experts, in fp32; of equal scores the lowest expert comes first.
    renormalise: weights of a token are scaled to a sum of 1.
    """
    scores = torch.softmax(F.linear(x, router).float(), dim=-1)
    ranked, order = scores.sort(dim=-1, descending=True, stable=True)
    weights = ranked[:, :per_token]
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return order[:, :per_token], weights


def mix_experts(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    experts: Tensor,
    weights: Tensor,
    *,
    residual: Tensor | None = None,
    product: Callable[..., Tensor] = linear,
) -> Tensor:
    """The weighted sum of what each token's experts make of it: [T, H], rounded once.

    x: [T, H]; gate_up: [E, 2 * I, H], gate rows then up rows; down: [E, H, I]; experts, weights:
    [T, per_token], see `route`; no token has an expert twice. The sum is taken in fp32, in the
    order of the experts' numbers, so it does not depend on the other tokens. residual: [T, H],
    added to the rounded sum. product: a `linear`.
    """

    def make(expert: int, rows: Tensor) -> Tensor:
        return product(product(rows, gate_up[expert], silu=True), down[expert])

    return _mix(x, make, experts, weights, residual)


def mix_experts_fp8(
    x: Tensor,
    gate_up: Weight,
    down: Weight,
    experts: Tensor,
    weights: Tensor,
    *,
    residual: Tensor | None = None,
) -> Tensor:
    """Like `mix_experts`, with FP8 weights."""

    def make(expert: int, rows: Tensor) -> Tensor:
        return linear_fp8(linear_fp8(rows, gate_up.of(expert), silu=True), down.of(expert))

    return _mix(x, make, experts, weights, residual)


def _mix(
    x: Tensor,
    make: Callable[[int, Tensor], Tensor],
    experts: Tensor,
    weights: Tensor,
    residual: Tensor | None,
) -> Tensor:
    mixed = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in experts.unique().tolist():
        rows, places = (experts == expert).nonzero(as_tuple=True)
        made = make(expert, x[rows])
        mixed.index_add_(0, rows, made.float() * weights[rows, places, None])
    mixed = mixed.to(x.dtype)
    return mixed if residual is None else residual + mixed
