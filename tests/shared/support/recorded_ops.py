"""Launches written down instead of made, on a machine that may have no GPU.

`RecordedOps` gives the results of the reference kernels, and asks the Triton ones as well, whose
launches are kept: the kernel, what it would be specialised on, and its grid. Products and attention
it gives as zeros: they take longest, and no launch depends on a number.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
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

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_active", _NoCard())
        patch.setattr(JITFunction, "run", run)
        patch.setattr(torch, "mm", _mm)  # what is left to the library
        patch.setattr(Tensor, "addmm_", lambda total, *_: total)
        yield found


class RecordedOps:
    """An `Ops` of the reference's results and of Triton's launches."""

    def __init__(self, *, exact: bool = False) -> None:
        self._triton = TritonOps.on(torch.device("cpu"), pdl=True, exact=exact)

    def __getattr__(self, name: str) -> Any:
        launch = getattr(self._triton, name)
        compute = _INSTEAD.get(name) or getattr(reference, name)

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


def _no_attention(q: Tensor, *_: Any, out: Tensor | None = None, **__: Any) -> Tensor:
    return (
        torch.zeros_like(q, memory_format=torch.contiguous_format) if out is None else out.zero_()
    )


def _mm(x: Tensor, weight: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    return x.new_zeros(len(x), weight.shape[1], dtype=out_dtype)


_INSTEAD = {
    "linear": _no_product,
    "decode_attention": _no_attention,
    "prefill_attention": _no_attention,
}
