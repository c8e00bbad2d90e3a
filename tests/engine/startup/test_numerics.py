"""What can change a token's last bits beside the fingerprint is told."""

from typing import Any, cast

import torch

from quire.engine.startup.numerics import numerics
from quire.kernels import reference
from quire.kernels.cpu.ops import CpuOps

CPU = torch.device("cpu")
TWINS = cast(Any, reference)


def test_the_line_names_the_ranks_the_processor_and_the_library() -> None:
    line = numerics(CPU, TWINS, ranks=2)
    assert line.startswith("tp=2 cpu=")
    assert f"torch={torch.__version__}" in line
    assert torch.backends.cpu.get_cpu_capability() in line
    assert line == numerics(CPU, TWINS, ranks=2) != numerics(CPU, TWINS, ranks=1)


def test_the_line_names_whose_products_are_taken() -> None:
    compiled = object.__new__(CpuOps)
    compiled.level = "avx512"
    assert " products=avx512 " in numerics(CPU, compiled, ranks=1)
    assert " products=torch " in numerics(CPU, TWINS, ranks=1)
