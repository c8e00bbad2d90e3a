"""Norms, products and activations in plain PyTorch: fp32 inside, rounded once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.kernels.row_scaled import RowScaled
from quire.kernels.weight import RowWeights


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


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, add: Tensor | None = None
) -> Tensor:
    """LayerNorm (Ba et al., 2016) over the last axis, computed in fp32 and rounded once.

    x: [T, H]; weight, bias: [H] -> [T, H]. add: [H], which is added to x first, in x's own storage:
    the bias that the product before it left out.
    """
    if add is not None:
        x.add_(add)
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def gelu_new(x: Tensor, bias: Tensor) -> Tensor:
    """GELU by its tanh (Hendrycks and Gimpel, 2016) of x + bias. x: [T, I], whose storage may be
    reused; bias: [I] -> [T, I]."""
    return F.gelu(x.add_(bias), approximate="tanh")


_FEW_ROWS, _NARROW = 8, 512
_WIDENED_AT_ONCE = 1 << 22  # numbers of an int8 weight: fp32 copies of more would not stay in cache


def _product(x: Tensor, weight: Tensor | RowScaled, dtype: torch.dtype) -> Tensor:
    """x @ weight.T. [T, K] -> [T, N] of x's dtype; with int8 rows of `dtype`."""
    if isinstance(weight, RowScaled):
        return _scaled_product(x.float(), weight).to(dtype)
    return _plain_product(x, weight)


def _scaled_product(x: Tensor, weight: RowScaled) -> Tensor:
    """fp32 sums of x's numbers and the int8, then the scale of each row."""
    parts = zip(
        *(t.split(max(1, _WIDENED_AT_ONCE // x.shape[1])) for t in (weight.data, weight.scale)),
        strict=True,
    )
    return torch.cat([F.linear(x, data.float()) * scale for data, scale in parts], dim=-1)


def _plain_product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T. Few narrow fp32 rows are taken as columns, one alone as two: on the CPU that
    is 1.3 to 4 times faster than the library's own choice (a matrix-vector product, for one)."""
    rows, width = x.shape
    if x.dtype != torch.float32 or x.is_cuda or rows > _FEW_ROWS or width > _NARROW or rows == 0:
        return F.linear(x, weight)
    columns = (x if rows > 1 else torch.cat((x, x))).t()
    return torch.mm(weight, columns).t()[:rows].contiguous()


def linear(
    x: Tensor,
    weight: Tensor | RowScaled,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    silu: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The one matrix product of the model, with what stands before and after it.

    x: [T, K]; weight: [N, K] (with silu: [2 * I, K], gate rows then up rows), of x's dtype or int8
    rows with scales -> [T, N] or [T, I].
    norm_weight: [K], RMSNorm x first. residual: [T, N], added to the result. out_dtype: the
    result's dtype (float32 for logits), else x's.
    """
    if norm_weight is not None:
        x = rms_norm(x, norm_weight, eps)
    bare = not silu and residual is None
    y = _product(x, weight, out_dtype if bare and out_dtype is not None else x.dtype)
    if silu:
        y = silu_mul(y)
    if residual is not None:
        y = residual + y
    return y if out_dtype is None else y.to(out_dtype)


def between_attentions(
    attended: Tensor, residual: Tensor, weights: RowWeights, eps: float
) -> tuple[Tensor, Tensor | None]:
    """What comes between two attentions: the residual behind the layer, [T, H], and the next
    layer's qkv, [T, N], where there is one. attended: [T, Q]; residual: [T, H].

    The twin of hopper_row.py. Not among the operations of a CPU, where each product is one.
    """
    middle = linear(attended, weights.o, residual=residual)
    inner = linear(middle, weights.gate_up, norm_weight=weights.post_norm, eps=eps, silu=True)
    out = linear(inner, weights.down, residual=middle)
    if weights.next_qkv is None:
        return out, None
    return out, linear(out, weights.next_qkv, norm_weight=weights.next_norm, eps=eps)
