"""A mixture of experts for one row, in three launches: scores, gates and ups, and the sum of downs.

Invariant: what comes of it is norm, `routing.route` and `mixing.mix_experts` of the row, up to
rounding: fewer results are rounded between.

Who is chosen is known to nobody before the scores are there, but gates and ups do not wait for a
launch that finds it: each program does. Downs find it as well, before they wait for gates and ups,
and fetch their first lines meanwhile: scores are complete when gates and ups let them be launched.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from quire.kernels.experts.one_row_fp8 import down_fp8_kernel, gate_up_fp8_kernel
from quire.kernels.experts.one_row_products import down_kernel, gate_up_kernel
from quire.kernels.fp8_groups import GROUP
from quire.kernels.linear import fp8_gemv, gemv
from quire.kernels.weight import Weight

_WARPS = 132 * 16  # that a large card runs at once
_HELD = 80  # registers a thread that two tiles of weights take, at most


@dataclass(frozen=True)
class Launch:
    """One product: weight rows at a time, warps a program, and tiles of so many rows a program."""

    block_n: int
    warps: int
    turns: int


@dataclass(frozen=True)
class OneRow:
    """How both products of a mixture are launched."""

    gate_up: Launch
    down: Launch


@cache
def choose(
    dtype: torch.dtype, sizes: tuple[int, int], per_token: int, *, narrow: bool
) -> OneRow | None:
    """How to launch experts of these sizes: hidden and inner; None where it cannot be.
    dtype: of activations; narrow: weights are FP8."""
    hidden, inner = sizes
    step, itemsize = (GROUP, 1) if narrow else (8, 2)
    if dtype.itemsize != 2 or hidden % 16 or inner % step:
        return None
    # What won on an H200 at the shape 30B-A3B, in a chain of whole layers.
    (gates, few), (downs, many) = ((4, 4), (2, 8)) if narrow else ((2, 4), (1, 4))
    gate_up = _launch(gates, few, 2 * hidden * itemsize, inner * per_token)
    down = _launch(downs, many, per_token * inner * itemsize, hidden)
    return None if gate_up is None or down is None else OneRow(gate_up, down)


def _launch(block_n: int, least: int, line: int, lines: int) -> Launch | None:
    """So many rows at a time of `line` bytes each, `lines` in all, by `least` warps or more; None
    if a program cannot hold them."""
    for warps in (least, 2 * least, 16):
        if 2 * block_n * line <= 4 * _HELD * 32 * warps:
            programs = _WARPS // warps
            return Launch(block_n, warps, triton.cdiv(lines, block_n * programs))
    return None


def mix_row(
    how: OneRow,
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    router: Tensor,
    gate_up: Weight,
    down: Weight,
    per_token: int,
    *,
    renormalise: bool,
    pdl: bool = False,
) -> Tensor:
    """x plus what the experts make of its norm, in x's storage. x: [1, H]; norm_weight: [H];
    router: [E, H]; gate_up: [E, 2 * I, H]; down: [E, H, I]."""
    count, _, inner = down.data.shape
    scores, made = x.new_empty(1, count), x.new_empty(per_token, inner)
    gemv.gemv(x, router, scores, block_n=1, warps=4, norm_weight=norm_weight, eps=eps, pdl=pdl)
    common = {"E": count, "BLOCK_E": triton.next_power_of_2(count), "PDL": pdl, "launch_pdl": pdl}
    _gates_and_ups(how.gate_up, x, norm_weight, eps, scores, gate_up, made, common)
    common |= {"PER_TOKEN": per_token, "RENORMALISE": renormalise}
    _downs(how.down, made, scores, down, x, common)
    return x


def _gates_and_ups(
    launch: Launch,
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    scores: Tensor,
    weight: Weight,
    out: Tensor,
    common: dict[str, Any],
) -> None:
    """out: [per_token, I]."""
    (per_token, inner), width, warps = out.shape, x.shape[1], launch.warps
    grid = triton.cdiv(inner, launch.turns * launch.block_n), per_token
    common = common | {"K": width, "BLOCK_N": launch.block_n, "num_warps": warps}
    before = x, norm_weight, scores
    if weight.scale is None:
        lanes = min(warps * 32 * 8, triton.next_power_of_2(width))
        gate_up_kernel[grid](
            *before, weight.data, out, inner, eps, launch.turns, BLOCK_K=lanes, **common
        )
    else:
        gate_up_fp8_kernel[grid](
            *before, weight.data.view(torch.int32), weight.scale, out, inner, eps, launch.turns,
            LANES=fp8_gemv.lanes(width, warps), **common,
        )  # fmt: skip


def _downs(
    launch: Launch, made: Tensor, scores: Tensor, weight: Weight, x: Tensor, common: dict[str, Any]
) -> None:
    """Add their sum to x. made: [per_token, I]."""
    columns, warps = x.shape[1], launch.warps
    grid = (triton.cdiv(columns, launch.turns * launch.block_n),)
    common = common | {"K": made.shape[1], "BLOCK_N": launch.block_n, "LANES": 32 * warps}
    common |= {"num_warps": warps}
    if weight.scale is None:
        down_kernel[grid](made, scores, weight.data, x, columns, launch.turns, **common)
    else:
        down_fp8_kernel[grid](
            made, scores, weight.data.view(torch.int32), weight.scale, x, columns, launch.turns,
            **common,
        )  # fmt: skip
