"""Launches written down instead of made, on a machine that may have no GPU.

`RecordedOps` gives the results of the reference kernels, and asks the Triton ones as well, whose
launches are kept: the kernel, what it would be specialised on, and its grid. Products it gives as
zeros: they take longest, and no launch depends on a number.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from quire.kernels import reference
from quire.kernels.triton_ops import TritonOps

GRID_LIMITS = (2**31 - 1, 65_535, 65_535)


class _NoCard:
    """What the compiler asks of a driver before it has a kernel."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def recorded() -> Iterator[set[str]]:
    """Launches made inside: one text for each kernel that would have to be compiled."""
    found: set[str] = set()

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        del warmup
        assert all(1 <= n <= most for n, most in zip(grid, GRID_LIMITS, strict=False)), grid
        *_, binder = self.device_caches[0]
        _bound, specialization, chosen = binder(*args, **options)
        found.add(f"{self.fn.__module__}.{self.fn.__qualname__} {specialization} {chosen}")

    original, before = JITFunction.run, driver._active
    driver.set_active(_NoCard())
    JITFunction.run = run
    try:
        yield found
    finally:
        JITFunction.run = original
        driver._active = before


class RecordedOps:
    """An `Ops` of the reference's results and of Triton's launches."""

    def __init__(self, *, exact: bool = False) -> None:
        self._triton = TritonOps.on(torch.device("cpu"), pdl=True, exact=exact)

    def __getattr__(self, name: str) -> Any:
        launch = getattr(self._triton, name)
        compute = _no_product if name == "linear" else getattr(reference, name)

        def call(*args: Any, **options: Any) -> Any:
            residual = options.get("residual")
            spare = {} if residual is None else {"residual": residual.clone()}  # written in place
            launch(*args, **options | spare)
            return compute(*args, **options)

        return call


def _no_product(
    x: Tensor,
    weight: Tensor,
    *,
    residual: Tensor | None = None,
    silu: bool = False,
    out_dtype: torch.dtype | None = None,
    **_norm: Any,
) -> Tensor:
    if residual is not None:
        return residual
    width = weight.shape[0] // (2 if silu else 1)
    return x.new_zeros(x.shape[0], width, dtype=out_dtype)
