"""What adds up a row of scores, or what its experts made, is one kernel for all numbers of rows."""

import pytest
import torch

pytest.importorskip("triton")
from support.recorded_ops import recorded


def test_a_softmax_and_a_weighted_sum_have_one_kernel_each() -> None:
    """Another tile would lie otherwise in its threads, and add up in another order."""
    from quire.kernels.experts import mixing, routing

    router, gate_up = torch.zeros(16, 64), torch.zeros(16, 64, 64)
    down = torch.zeros(16, 64, 32)
    with recorded() as launched:
        for rows in (1, 2, 17, 300, 2000):
            x = torch.zeros(rows, 64)
            experts, weights = routing.route(x, router, 2, renormalise=True)
            mixing.mix_experts(x, gate_up, down, experts.zero_(), weights)
    for kernel in ("_choice_kernel", "_sum_kernel"):
        assert sum(kernel in launch for launch in launched) == 1
