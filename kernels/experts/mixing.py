"""The experts' results for their tokens, weighted and summed.

Invariant: a token's sum is taken in fp32 in the order of its slots, the best expert first, over
each expert's result, rounded to the model's dtype; a residual is added last, and the sum is rounded
once. Together with the products' own order (products.py), a token's result has the same bits beside
any other tokens.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels import support
from quire.kernels.experts import routing, sorting, tiles
from quire.kernels.experts.products import grouped
from quire.kernels.experts.products_fp8 import grouped_fp8
from quire.kernels.experts.sorting import Order
from quire.kernels.experts.tiles import Mix
from quire.kernels.linear.fp8_quantize import quantize
from quire.kernels.weight import Weight

_SUM_BLOCK = 1024  # elements of one row a program of the sum


@triton.jit
def _sum_kernel(
    made_ptr,  # [T * PER_TOKEN, H]
    weights_ptr,  # [T, PER_TOKEN] fp32
    residual_ptr,  # [T, H], read if RESIDUAL; may be out_ptr
    out_ptr,  # [T, H]
    H,
    PER_TOKEN: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (T, ceil(H / BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    total = tl.zeros((BLOCK,), tl.float32)
    for slot in tl.static_range(PER_TOKEN):
        pair = row * PER_TOKEN + slot
        made = tl.load(made_ptr + pair * H + h, mask=h < H, other=0.0).to(tl.float32)
        total += tl.load(weights_ptr + pair) * made
    if RESIDUAL:
        total += tl.load(residual_ptr + row * H + h, mask=h < H, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * H + h, total.to(out_ptr.dtype.element_ty), mask=h < H)


def kernels(rows: int, per_token: int, count: int) -> tuple[object, ...]:
    """What decides the kernels of a layer of experts, router included: numbers of rows with an
    equal value use the same kernels. See `tiles.tile_class`."""
    tile, order = tiles.tile_class(rows, per_token, count), sorting.sort_class(rows, count)
    return tiles.chains(rows), routing.route_class(rows), tile, *order


def mix_experts(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    experts: Tensor,
    weights: Tensor,
    *,
    residual: Tensor | None = None,
    pdl: bool = False,
) -> Tensor:
    """x: [T, H]; gate_up: [E, 2 * I, H]; down: [E, H, I]; experts, weights: [T, per_token], as
    `route` gives them -> [T, H]. See the reference. The residual's storage is reused."""
    rows, per_token = experts.shape
    count = gate_up.shape[0]
    shared, old = support.shared_bytes(x.device), support.before_hopper(x.device)
    mix = tiles.choose(rows, per_token, count, x.dtype, shared=shared, hopper=not old)
    return run(mix, x, gate_up, down, experts, weights, residual=residual, pdl=pdl)


def run(
    mix: Mix,
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    experts: Tensor,
    weights: Tensor,
    *,
    residual: Tensor | None = None,
    pdl: bool = False,
) -> Tensor:
    """`mix_experts` by given tiles."""

    def product(x: Tensor, out: Tensor, experts: Tensor, order: Order | None, silu: bool) -> None:
        weight, tile = (gate_up, mix.gate_up) if silu else (down, mix.down)
        grouped(x, weight, out, experts, order, tile, mix.block_m, silu=silu, pdl=pdl)

    sizes = gate_up.shape[0], down.shape[2]
    return _mixed(mix, product, sizes, x, experts, weights, residual, pdl)


def mix_experts_fp8(
    x: Tensor,
    gate_up: Weight,
    down: Weight,
    experts: Tensor,
    weights: Tensor,
    *,
    residual: Tensor | None = None,
    pdl: bool = False,
) -> Tensor:
    """`mix_experts` with FP8 weights."""
    mix = fp8_mix(x, gate_up, down, experts.shape[1])
    return run_fp8(mix, x, gate_up, down, experts, weights, residual=residual, pdl=pdl)


def fp8_mix(x: Tensor, gate_up: Weight, down: Weight, per_token: int) -> Mix:
    """How the products of x by experts with FP8 weights are launched."""
    data = gate_up.data
    shared, old = support.shared_bytes(x.device), support.before_hopper(x.device)
    mix = tiles.choose(len(x), per_token, len(data), data.dtype, shared=shared, hopper=not old)
    _, hidden, inner = down.data.shape
    return tiles.specialised(mix) if tiles.takes(x, hidden, inner, mix) else mix


def run_fp8(
    mix: Mix,
    x: Tensor,
    gate_up: Weight,
    down: Weight,
    experts: Tensor,
    weights: Tensor,
    *,
    residual: Tensor | None = None,
    pdl: bool = False,
) -> Tensor:
    """`mix_experts_fp8` by given tiles."""

    def product(x: Tensor, out: Tensor, experts: Tensor, order: Order | None, silu: bool) -> None:
        weight, tile = (gate_up, mix.gate_up) if silu else (down, mix.down)
        taken = quantize(x, pdl=pdl)
        if mix.specialised and order is not None:
            from quire.kernels.experts import hopper_fp8  # Gluon: not in every Triton

            hopper_fp8.grouped(taken, weight, out, order, experts.shape[1], silu=silu)
            return
        grouped_fp8(taken, weight, out, experts, order, tile, mix.block_m, silu=silu, pdl=pdl)

    sizes = gate_up.data.shape[0], down.data.shape[2]
    return _mixed(mix, product, sizes, x, experts, weights, residual, pdl)


def _mixed(
    mix: Mix,
    product: Callable[[Tensor, Tensor, Tensor, Order | None, bool], None],
    sizes: tuple[int, int],
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    residual: Tensor | None,
    pdl: bool,
) -> Tensor:
    """Gates and ups, downs, and their sum. product: (x, out, experts, order, silu), with silu of
    gates and ups, which fills out; sizes: experts, and the width between the two products."""
    x, experts = x.contiguous(), experts.contiguous()
    out = torch.empty_like(x) if residual is None else residual
    if not x.numel():
        return out
    (count, width), pairs, order = sizes, experts.numel(), None
    if mix.is_sorted:
        order = sorting.sort(experts, count, mix.block_m, mix.down_m, pdl=pdl)
    inner = x.new_empty(pairs, width)
    product(x, inner, experts, order, True)
    made = x.new_empty(pairs, x.shape[1])
    product(inner, made, experts, order, False)
    add_up(made, weights.contiguous(), residual, out, pdl=pdl)
    return out


def add_up(
    made: Tensor, weights: Tensor, residual: Tensor | None, out: Tensor, *, pdl: bool = False
) -> None:
    """out = residual + the weighted sum of the experts' results. made: [T * per_token, H]."""
    rows, width = out.shape
    _sum_kernel[(rows, triton.cdiv(width, _SUM_BLOCK))](
        made, weights, out if residual is None else residual, out, width,
        PER_TOKEN=weights.shape[1], RESIDUAL=residual is not None, BLOCK=_SUM_BLOCK, PDL=pdl,
        num_warps=4, launch_pdl=pdl,
    )  # fmt: skip
