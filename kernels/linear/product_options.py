"""What a product may have fused with it: a norm before it, SiLU·mul and a residual after it."""

from typing import TypedDict

import torch
from torch import Tensor

from quire.kernels.padding import new_rows


class ProductOptions(TypedDict, total=False):
    """norm_weight: [K], of a norm before the product, with eps; silu: SiLU·mul after it; residual:
    added then, [T, N] or [T, I], whose storage is reused for the result where dtypes agree.
    out_dtype: of the result; x's if None. counters: the workspace of split products
    (`skinny.new_counters`); without it one is made, which costs a kernel. pdl: launched as a
    dependent of the kernel ahead."""

    norm_weight: Tensor | None
    eps: float
    residual: Tensor | None
    silu: bool
    out_dtype: torch.dtype | None
    counters: Tensor | None
    pdl: bool


def result(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    silu: bool,
    out_dtype: torch.dtype | None,
    *,
    apart: bool = False,
) -> Tensor:
    """Where the result goes: the residual's own storage if it can be. apart: in exact mode, where
    the product behind a SiLU·mul may be the library's, of more rows."""
    dtype = x.dtype if out_dtype is None else out_dtype
    if residual is not None and residual.dtype == dtype:
        return residual
    columns = weight.shape[0] // 2 if silu else weight.shape[0]
    if apart and silu and dtype == x.dtype:
        return new_rows(x, x.shape[0], columns)
    return x.new_empty(x.shape[0], columns, dtype=dtype)


def pointers(
    x: Tensor, out: Tensor, residual: Tensor | None, norm_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Result, residual and norm; where there is none, another tensor that is not read."""
    beside = out if residual is None else residual
    return out, beside, x if norm_weight is None else norm_weight


def flags(
    residual: Tensor | None, norm_weight: Tensor | None, *, silu: bool, pdl: bool
) -> dict[str, bool]:
    """Which of them there are, and whether the launch depends on the kernel ahead."""
    return {
        "NORM": norm_weight is not None,
        "RESIDUAL": residual is not None,
        "SILU": silu,
        "PDL": pdl,
        "launch_pdl": pdl,
    }
