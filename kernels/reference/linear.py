"""Norms, products and activations in plain PyTorch: fp32 inside, rounded once."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis, computed in fp32 and rounded once. x: [..., H], weight: [H]."""
    h = x.float()
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    return (h * weight.float()).to(x.dtype)


def silu_mul(x: Tensor) -> Tensor:
    """silu(gate) * up, with gate and up side by side. x: [T, 2 * I] -> [T, I].

    In bf16 silu(gate) is rounded before the product, as in transformers: on a CPU an fp32 copy of
    both costs more than the activation.
    """
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


_FEW_ROWS, _NARROW = 8, 512


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T. Few narrow fp32 rows are taken as columns, one alone as two: on the CPU that
    is 1.3 to 4 times faster than the library's own choice (a matrix-vector product, for one)."""
    rows, width = x.shape
    if x.dtype != torch.float32 or x.is_cuda or rows > _FEW_ROWS or width > _NARROW or rows == 0:
        return F.linear(x, weight)
    columns = (x if rows > 1 else torch.cat((x, x))).t()
    return torch.mm(weight, columns).t()[:rows].contiguous()


def linear(
    x: Tensor,
    weight: Tensor,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    silu: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The one matrix product of the model, with what stands before and after it.

    x: [T, K]; weight: [N, K] (with silu: [2 * I, K], gate rows then up rows) -> [T, N] or [T, I].
    norm_weight: [K], RMSNorm x first. residual: [T, N], added to the result. out_dtype: the
    result's dtype (float32 for logits), else x's.
    """
    y = around(_product, x, weight, norm_weight=norm_weight, eps=eps, residual=residual, silu=silu)
    return y if out_dtype is None else y.to(out_dtype)


def around(
    product: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    weight: Tensor,
    *,
    norm_weight: Tensor | None,
    eps: float,
    residual: Tensor | None,
    silu: bool,
) -> Tensor:
    """What stands before and after a product in `linear`, with a product of one's own."""
    if norm_weight is not None:
        x = rms_norm(x, norm_weight, eps)
    y = product(x, weight)
    if silu:
        y = silu_mul(y)
    return y if residual is None else residual + y
