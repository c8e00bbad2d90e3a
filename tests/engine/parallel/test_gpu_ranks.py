"""Two ranks on two GPUs answer as one does. See support/gpu_engines.py."""

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


def test_two_ranks_answer_as_one_in_float32() -> None:
    """Sums of two halves are rounded in another place: a token differs where two are as good."""
    from support.gpu_engines import TOKENS, agreement, answers  # needs triton

    equal = agreement(answers("float32", 1), answers("float32", 2))
    assert sum(count == TOKENS for count in equal) >= len(equal) - 1


def test_graphs_and_eager_steps_of_two_ranks_answer_alike() -> None:
    from support.gpu_engines import TOKENS, agreement, answers

    equal = agreement(answers("bfloat16", 2), answers("bfloat16", 2, enforce_eager=True))
    assert equal == [TOKENS] * len(equal)
