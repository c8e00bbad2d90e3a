"""Calls of the kernels of mixtures of experts, at the shape 30B-A3B."""

import torch
from torch import Tensor

from offline.compiling import Calls, cases, empty
from quire.kernels.weight import Weight

HIDDEN, COUNT, PER_TOKEN, INNER = 2048, 128, 8, 768
ROWS = (1, 16, 64, 256, 1024, 4096)  # one of each choice of tiles, and of every way to sort


@cases(hot=True)
def experts() -> Calls:
    from quire.kernels.experts import mixing, routing

    gate_up, down = empty(COUNT, 2 * INNER, HIDDEN), empty(COUNT, HIDDEN, INNER)
    router = empty(COUNT, HIDDEN)
    for rows in ROWS:

        def call(rows: int = rows) -> None:
            x = empty(rows, HIDDEN)
            chosen, weights = routing.route(x, router, PER_TOKEN, renormalise=True, pdl=True)
            mixing.mix_experts(x, gate_up, down, chosen, weights, residual=x, pdl=True)

        yield f"experts, {rows} rows", call
    yield "experts, one row", lambda: _one_row(Weight(gate_up), Weight(down), router)


@cases(hot=True, e4m3=True)
def experts_fp8() -> Calls:
    from quire.kernels.experts import mixing

    def weight(lines: int, width: int) -> Weight:
        scale = empty(COUNT, lines // 128, width // 128, dtype=torch.float32)
        return Weight(empty(COUNT, lines, width, dtype=torch.float8_e4m3fn), scale)

    gate_up, down = weight(2 * INNER, HIDDEN), weight(HIDDEN, INNER)
    for rows in ROWS:

        def call(rows: int = rows) -> None:
            x = empty(rows, HIDDEN)
            chosen = empty(rows, PER_TOKEN, dtype=torch.int64)
            shares = empty(rows, PER_TOKEN, dtype=torch.float32)
            mixing.mix_experts_fp8(x, gate_up, down, chosen, shares, residual=x, pdl=True)

        yield f"fp8 experts, {rows} rows", call
    router = empty(COUNT, HIDDEN)
    yield "fp8 experts, one row", lambda: _one_row(gate_up, down, router)


def _one_row(gate_up: Weight, down: Weight, router: Tensor) -> None:
    from quire.kernels.experts import one_row

    x, norm, narrow = empty(1, HIDDEN), empty(HIDDEN), down.scale is not None
    how = one_row.choose(x.dtype, down.data.shape[1:], PER_TOKEN, narrow=narrow)
    assert how is not None
    one_row.mix_row(
        how, x, norm, 1e-6, router, gate_up, down, PER_TOKEN, renormalise=True, pdl=True
    )
