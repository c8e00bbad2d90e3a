"""Muon for the matrices of the layers, AdamW for the embedding and the norms.

Invariant: every parameter belongs to exactly one of the two. Muon: Jordan et al. 2024 (momentum,
then the nearest orthogonal matrix by five Newton–Schulz steps); matrices of one shape are updated
as one batch.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonal(matrices: Tensor) -> Tensor:
    """[n, rows, columns] → about the nearest orthogonal matrices, same shape and dtype."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x.bfloat16() if x.is_cuda else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)


class Muon:
    """Momentum 0.95 (Nesterov), decoupled weight decay."""

    def __init__(self, parameters: list[nn.Parameter], rate: float, decay: float = 0.1) -> None:
        self.rate, self.decay = rate, decay
        groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            groups[parameter.shape].append(parameter)
        self.groups = list(groups.values())
        self.momenta = [torch.zeros_like(torch.stack(list(g))) for g in self.groups]

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One update at `scale` times the base rate; consumes the gradients."""
        rate = self.rate * scale
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            momentum.lerp_(gradient, 0.05)
            update = orthogonal(gradient.lerp_(momentum, 0.95))
            rows, columns = group[0].shape
            update *= -rate * max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(list(group), 1.0 - rate * self.decay)
            torch._foreach_add_(list(group), list(update.unbind()))
            for parameter in group:
                parameter.grad = None


class Optimizers:
    """Both optimizers of one model behind one `step`."""

    def __init__(self, model: nn.Module, muon_rate: float, adam_rate: float) -> None:
        named = list(model.named_parameters())
        matrices = [p for n, p in named if p.dim() == 2 and "embed" not in n]
        embedding = [p for n, p in named if "embed" in n]
        norms = [p for n, p in named if p.dim() == 1]
        self.muon = Muon(matrices, muon_rate)
        self.adam_rate = adam_rate
        self.adam = torch.optim.AdamW(
            [{"params": embedding, "weight_decay": 0.01}, {"params": norms, "weight_decay": 0.0}],
            lr=adam_rate,
            betas=(0.9, 0.98),
            eps=1e-10,
        )

    def step(self, scale: float) -> None:
        """One update of every parameter at `scale` times the base rates."""
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * scale
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.muon.step(scale)

    def tensors(self) -> dict[str, Tensor]:
        """The momenta by name, to be saved or filled in place."""
        found = {f"muon.{at}": momentum for at, momentum in enumerate(self.muon.momenta)}
        parameters = [p for group in self.adam.param_groups for p in group["params"]]
        for at, parameter in enumerate(parameters):
            state = self.adam.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            found |= {f"adam.{at}.{name}": tensor for name, tensor in state.items()}
        return found
