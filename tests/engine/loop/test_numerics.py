"""What can change a token's last bits beside the fingerprint is told."""

import torch

from quire.engine.loop.numerics import numerics

CPU = torch.device("cpu")


def test_the_line_names_the_ranks_the_processor_and_the_library() -> None:
    line = numerics(CPU, ranks=2)
    assert line.startswith("tp=2 cpu=")
    assert f"torch={torch.__version__}" in line
    assert torch.backends.cpu.get_cpu_capability() in line
    assert line == numerics(CPU, ranks=2) != numerics(CPU, ranks=1)
