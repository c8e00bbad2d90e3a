"""Calls of the kernels of mixtures of experts, at the shape 30B-A3B."""

from offline.compiling import Calls, cases, empty

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
