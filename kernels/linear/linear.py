"""The one matrix product of the model: norm before it, SiLU·mul or residual after it.

Invariant: nothing else multiplies by a weight. Which kernel runs is a pure function of the weight's
shape, the rows, the dtype and the card (`tuning.choose`): matrix-vector (gemv.py), tensor cores
bound by the weight (skinny.py), or the library for many rows; in its place hopper_tall.py, where
`tall_launch` says so.

Within one bucket of rows a row's result does not depend on the rows beside it, except where the
library says otherwise. Across buckets the order of the K-reduction changes with the kernel: rows
then agree to rounding, not bit for bit.
"""

from typing import Unpack

import torch
from torch import Tensor

from quire.kernels import padding, support
from quire.kernels.linear import (
    boxed,
    gemv,
    norms,
    product_options,
    side,
    skinny,
    stacked,
    tall,
    tall_launch,
    tuning,
    whole,
)
from quire.kernels.linear.exact import ExactProducts
from quire.kernels.linear.product_options import ProductOptions
from quire.kernels.linear.tuning import (
    Boxed,
    Gemv,
    Library,
    Side,
    Skinny,
    Stacked,
    Tall,
    Variant,
    Whole,
)


def linear(
    x: Tensor,
    weight: Tensor,
    *,
    exact: ExactProducts | None = None,
    **beside: Unpack[ProductOptions],
) -> Tensor:
    """x: [T, K]; weight: [N, K] (with silu [2 * I, K]) -> [T, N] or [T, I]. See the reference.
    exact: chooses, if given."""
    rows, width = x.shape
    shared, card = support.shared_bytes(weight.device), support.card_name(weight.device)
    if exact is None:
        silu = beside.get("silu", False)
        variant = tuning.choose(weight.shape[0], width, rows, weight.dtype, silu, shared, card)
    else:
        variant = exact.choose(weight.shape[0], width, rows, shared, card)
    return run(variant, x, weight, apart=exact is not None, **beside)


def run(
    variant: Variant,
    x: Tensor,
    weight: Tensor,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    silu: bool = False,
    out_dtype: torch.dtype | None = None,
    counters: Tensor | None = None,
    pdl: bool = False,
    apart: bool = False,
) -> Tensor:
    """`linear` by a given variant. apart: the product is rounded to x's dtype, and the residual is
    added then: what the library does with an accumulator of 16 bits is its own affair."""
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    if norm_weight is not None and not _fuses_norm(variant):
        room = apart and isinstance(variant, Library)
        x = norms.rms_norm(x, norm_weight, eps, room=room, ordered=apart, pdl=pdl)
        norm_weight = None
    if isinstance(variant, Library):
        return _by_library(
            variant, x, weight, residual=residual, silu=silu, out_dtype=out_dtype, pdl=pdl,
            apart=apart,
        )  # fmt: skip
    if isinstance(variant, Side | Stacked | Tall):
        return _in_shares(
            variant, x, weight, norm_weight=norm_weight, eps=eps, residual=residual, silu=silu,
            out_dtype=out_dtype, pdl=pdl, apart=apart,
        )  # fmt: skip
    out = product_options.result(x, weight, residual, silu, out_dtype, apart=apart)
    if not out.numel():
        return out
    options = {**vars(variant), "residual": residual, "silu": silu, "pdl": pdl}
    if isinstance(variant, Boxed):
        boxed.boxed(x, weight, out, counters=counters, apart=apart, **options)
        return out
    options |= {"norm_weight": norm_weight, "eps": eps}
    if isinstance(variant, Gemv):
        gemv.gemv(x, weight, out, **options)
    elif isinstance(variant, Whole):
        whole.whole(x, weight, out, apart=apart, **options)
    else:
        skinny.skinny(x, weight, out, counters=counters, apart=apart, **options)
    return out


def _in_shares(
    variant: Side | Stacked | Tall,
    x: Tensor,
    weight: Tensor,
    *,
    norm_weight: Tensor | None,
    eps: float,
    residual: Tensor | None,
    silu: bool,
    out_dtype: torch.dtype | None,
    pdl: bool,
    apart: bool,
) -> Tensor:
    """By a program that sums all shares of K; SiLU·mul is a kernel of its own."""
    if silu:
        out = x.new_empty(x.shape[0], weight.shape[0])
    else:
        out = product_options.result(x, weight, residual, silu, out_dtype)
    if not out.numel():
        return out
    before = None if silu else residual
    options = vars(variant) | {"residual": before, "apart": apart, "pdl": pdl}
    if isinstance(variant, Side):
        side.side(x, weight, out, **options)
    elif isinstance(variant, Stacked):
        stacked.stacked(x, weight, out, norm_weight=norm_weight, eps=eps, **options)
    else:
        tall.tall(x, weight, out, **options)
    if not silu:
        return out
    out = norms.silu_mul(out, pdl=pdl).to(x.dtype if out_dtype is None else out_dtype)
    return out if residual is None else residual.add_(out)


def _fuses_norm(variant: Variant) -> bool:
    if isinstance(variant, Stacked):
        return variant.split == 1
    return isinstance(variant, Gemv | Whole) or (isinstance(variant, Skinny) and variant.fuse_norm)


def _by_library(
    variant: Library,
    x: Tensor,
    weight: Tensor,
    *,
    residual: Tensor | None,
    silu: bool,
    out_dtype: torch.dtype | None,
    pdl: bool,
    apart: bool,
) -> Tensor:
    """By torch's products: one of each share of K, or one of all."""
    rows, dtype = len(x), out_dtype or x.dtype
    padded = padding.library_rows(rows) if apart and rows else rows
    groups = tall_launch.groups_for(weight.shape[0], x.shape[1], padded, silu=silu)
    if groups and residual is None:
        out = product_options.result(x, weight, None, silu, dtype, apart=apart)
        if tall_launch.takes(x, out, 1):
            from quire.kernels.linear import hopper_tall  # Gluon: not in every Triton

            hopper_tall.tall(x, weight, out, groups, silu=silu, pdl=pdl)
            return out
    x = padding.padded(x, padded)
    if variant.split > 1 and not silu:
        before = residual
        if before is None:
            before = x.new_zeros(rows, weight.shape[0], dtype=dtype)
        if before.dtype == dtype:
            shares = _shares(x, weight, variant.split)
            return norms.add_shares(shares, before, pdl=pdl, apart=apart)
    apart = apart and not (variant.joins and len(x) == rows)
    return _library(
        x, weight, rows, residual=residual, silu=silu, dtype=dtype, pdl=pdl, apart=apart
    )


def _library(
    x: Tensor,
    weight: Tensor,
    rows: int,
    *,
    residual: Tensor | None,
    silu: bool,
    dtype: torch.dtype,
    pdl: bool,
    apart: bool,
) -> Tensor:
    """torch's product; the residual joins it as the accumulator where that needs no copy, and is
    not to be added apart. rows: of x, what follows is padding; so it is in the result's storage."""
    if silu:
        y = norms.silu_mul(torch.mm(x, weight.t()), pdl=pdl).to(dtype)[:rows]
        return y if residual is None else residual.add_(y)
    if residual is not None and residual.dtype == x.dtype == dtype:
        if apart:
            return residual.add_(_product(x, weight, dtype)[:rows])
        return residual.addmm_(x, weight.t())
    y = _product(x, weight, dtype)[:rows]
    return y if residual is None else (residual + y).to(dtype)


def _shares(x: Tensor, weight: Tensor, split: int) -> Tensor:
    """x @ weight.T as the sum of `split` shares of K: [split, T, N] fp32. split divides K."""
    x = x.view(x.shape[0], split, -1).transpose(0, 1)
    weight = weight.view(weight.shape[0], split, -1).permute(1, 2, 0)
    if x.is_cuda and x.dtype != torch.float32:
        return torch.bmm(x, weight, out_dtype=torch.float32)
    return torch.bmm(x.float(), weight.float())


def _product(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """x @ weight.T in dtype; fp32 straight from the accumulator where torch can (CUDA)."""
    if dtype == torch.float32 and x.dtype != dtype and x.is_cuda:
        return torch.mm(x, weight.t(), out_dtype=dtype)
    return torch.mm(x, weight.t()).to(dtype)
