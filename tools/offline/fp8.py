"""Calls of the kernels of FP8 weights."""

import torch

from offline.compiling import Calls, cases, empty
from quire.kernels import support

_WIDTHS = (2048, 4096, 12288)


@cases(hot=True)
def quantizing() -> Calls:
    from quire.kernels.linear import fp8_quantize

    if not support.knows_e4m3(torch.device("meta")):
        return
    for width in _WIDTHS:
        for pdl in (False, True):
            yield (
                f"fp8 norm and quantize {width} pdl {pdl}",
                lambda width=width, pdl=pdl: fp8_quantize.rms_norm_quantize(
                    empty(8, width), empty(width), 1e-6, pdl=pdl
                ),
            )
        yield (
            f"fp8 quantize {width}",
            lambda width=width: fp8_quantize.quantize(empty(8, width), by_group=True),
        )
        yield (
            f"fp8 silu, mul and quantize {width}",
            lambda width=width: fp8_quantize.silu_mul_quantize(empty(8, 2 * width)),
        )
    yield (
        "fp8 quantize float32",
        lambda: fp8_quantize.quantize(empty(8, 2048, dtype=torch.float32)),
    )
