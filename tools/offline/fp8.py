"""Calls of the kernels of FP8 weights."""

import itertools
from functools import partial
from typing import Any

import torch

from offline.compiling import Calls, cases, empty
from quire.kernels import support
from quire.kernels.weight import Weight

E4M3 = torch.float8_e4m3fn
_WIDTHS = (2048, 4096, 12288)


@cases(hot=True, e4m3=True)
def quantizing() -> Calls:
    from quire.kernels.linear import fp8_quantize

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
        "fp8 SiLU and quantize",
        lambda: fp8_quantize.quantize(empty(8, 24576), silu=True, by_group=True),
    )
    yield (
        "fp8 quantize float32",
        lambda: fp8_quantize.quantize(empty(8, 2048, dtype=torch.float32)),
    )


@cases(hot=True, e4m3=True)
def fp8_products() -> Calls:
    from linear_candidates import products

    from quire.kernels.linear import fp8_linear, fp8_tuning, skinny, tuning

    shared = support.shared_bytes(torch.device("meta"))
    counters = skinny.new_counters(torch.device("meta"))
    for product in products("8B")[:-1]:
        n, k = product.n, product.k
        weight = Weight(
            empty(n, k, dtype=E4M3),
            empty(n // 128, k // 128, dtype=torch.float32),
        )
        seen = set()
        buckets = (*tuning.ROW_BUCKETS, tuning.ROW_BUCKETS[-1] + 1)
        for choose, rows in itertools.product((fp8_tuning.choose, fp8_tuning.exact), buckets):
            variant = choose(n, k, rows, product.silu, shared)
            if variant in seen:
                continue
            seen.add(variant)

            def call(
                variant: Any = variant, weight: Weight = weight, p: Any = product, rows: int = rows
            ) -> None:
                fp8_linear.run(
                    variant,
                    empty(rows, p.k),
                    weight,
                    norm_weight=empty(p.k) if p.norm else None,
                    eps=1e-6,
                    residual=empty(rows, p.columns) if p.residual else None,
                    silu=p.silu,
                    counters=counters,
                    pdl=True,
                )

            yield f"fp8 {product.name} {n} x {k}, {rows} rows, {choose.__name__}", call


@cases(hot=True, e4m3=True)
def fp8_in_halves() -> Calls:
    """In Gluon, with a residual and without."""
    from quire.kernels.linear import fp8_linear
    from quire.kernels.linear.fp8_tuning import Fp8Hopper

    x, weight = empty(256, 4096), empty(4096, 4096, dtype=E4M3)
    if not fp8_linear.has_hopper(x, x.device):
        return
    given = Weight(weight, empty(32, 32, dtype=torch.float32))
    call = partial(fp8_linear.run, Fp8Hopper(), x, given, pdl=True)
    yield "fp8 in halves", call
    yield "fp8 in halves, residual", partial(call, residual=empty(256, 4096))
