"""The product of an FP8 weight: norm before it, SiLU·mul or residual after it.

Invariant: x is quantized to the same numbers whichever kernel is used, and which one is used is a
pure function of the weight's shape, the rows and the card (`fp8_tuning.choose`). One row goes
through fp8_gemv.py, which quantizes on its way; more through fp8_quantize.py and fp8_tiles.py; a
hundred and more, where available, through fp8_hopper.py and the library. Each file says how it sums
over K. Within one bucket of rows a row's result does not depend on the rows beside it; across
buckets rows agree to rounding. In exact mode tiles with one order of sums take any number of rows
(`fp8_tuning.exact`).
"""

from typing import Unpack

import torch
from torch import Tensor

from quire.kernels import support
from quire.kernels.linear import (
    fp8_gemv,
    fp8_library,
    fp8_quantize,
    fp8_tiles,
    fp8_tuning,
    norms,
    product_options,
)
from quire.kernels.linear.fp8_tuning import Fp8Gemv, Fp8Hopper, Fp8Library, Fp8Variant
from quire.kernels.linear.product_options import ProductOptions
from quire.kernels.weight import Quantized, Weight


def linear_fp8(
    x: Tensor | Quantized,
    weight: Weight,
    *,
    exact: bool = False,
    narrow: bool = False,
    **beside: Unpack[ProductOptions],
) -> Tensor | Quantized:
    """x: [T, K]; weight: [N, K] (with silu [2 * I, K]) -> [T, N] or [T, I]. See the reference."""
    device, rows = weight.data.device, x.data.shape[0]
    sizes = *weight.data.shape, rows, beside.get("silu", False), support.shared_bytes(device)
    if exact:
        return run(fp8_tuning.exact(*sizes), x, weight, **beside)
    library = _dtype(x) == fp8_library.DTYPE and fp8_library.available(device)
    variant = fp8_tuning.choose(*sizes, library=library, hopper=has_hopper(x, device))
    return run(variant, x, weight, narrow=narrow, **beside)


def has_hopper(x: Tensor | Quantized, device: torch.device) -> bool:
    """Whether the kernel of fp8_hopper.py takes such activations. In Gluon, which is no stable
    interface; by another version of Triton it was not looked at."""
    known = support.HOPPER_TRITON[:1]
    return _dtype(x) == fp8_library.DTYPE and support.has_gluon(device, known)


def run(
    variant: Fp8Variant,
    x: Tensor | Quantized,
    weight: Weight,
    *,
    narrow: bool = False,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    silu: bool = False,
    out_dtype: torch.dtype | None = None,
    counters: Tensor | None = None,
    pdl: bool = False,
) -> Tensor | Quantized:
    """`linear_fp8` by a given variant."""
    x = x.contiguous() if isinstance(x, Tensor) else x
    residual = None if residual is None else residual.contiguous()
    dtype = _dtype(x)
    if isinstance(variant, Fp8Library) and x.data.numel():
        quantized = _quantized(x, norm_weight, eps, by_group=True, pdl=pdl)
        y = fp8_library.product(quantized, weight, dtype)
        if silu and narrow:
            return fp8_quantize.quantize(y, silu=True, by_group=True, pdl=pdl)
        y = norms.silu_mul(y, pdl=pdl) if silu else y
        y = y if residual is None else residual.add_(y)
        return y if out_dtype is None else y.to(out_dtype)
    out = product_options.result(x.data, weight.data, residual, silu, out_dtype or dtype)
    if not out.numel():
        return out
    assert not isinstance(variant, Fp8Library)
    options = {**vars(variant), "residual": residual, "silu": silu, "pdl": pdl}
    if isinstance(variant, Fp8Gemv):
        assert isinstance(x, Tensor)  # one row is never narrow
        fp8_gemv.gemv(x, weight, out, norm_weight=norm_weight, eps=eps, **options)
        return out
    by_group = isinstance(variant, Fp8Hopper)
    quantized = _quantized(x, norm_weight, eps, by_group=by_group, pdl=pdl)
    if isinstance(variant, Fp8Hopper):
        from quire.kernels.linear import fp8_hopper  # Gluon: not in every Triton

        fp8_hopper.halves(quantized, weight, out, residual=residual, counters=counters, pdl=pdl)
        return out
    fp8_tiles.tiles(quantized, weight, out, counters=counters, **options)
    return out


def _dtype(x: Tensor | Quantized) -> torch.dtype:
    """The dtype of the activations. Quantized ones come from a library product, and have its
    dtype."""
    return x.dtype if isinstance(x, Tensor) else fp8_library.DTYPE


def _quantized(
    x: Tensor | Quantized, norm_weight: Tensor | None, eps: float, *, by_group: bool, pdl: bool
) -> Quantized:
    if isinstance(x, Quantized):
        return x
    if norm_weight is None:
        return fp8_quantize.quantize(x, by_group=by_group, pdl=pdl)
    return fp8_quantize.rms_norm_quantize(x, norm_weight, eps, by_group=by_group, pdl=pdl)
