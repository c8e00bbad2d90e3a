"""Kernels compiled without being launched, for a GPU that need not be there.

Invariant: what is compiled here has the key in Triton's cache that the launch itself would ask for:
the launchers are called as they are, on meta tensors, whose addresses begin at zero and so are
aligned as a device's are. A process that has come in here launches nothing any more.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from quire.kernels import support


@dataclass(frozen=True)
class OfflineCard:
    """A GPU that is only compiled for. arch: 90 is sm_90. shared: bytes of shared memory that a
    program may have. name: as its driver gives it, by which tables of kernels are chosen."""

    arch: int
    shared: int
    name: str = support.HOME_CARD

    @property
    def capability(self) -> tuple[int, int]:
        return self.arch // 10, self.arch % 10


class OfflineDriver:
    """Stands in for the CUDA driver: enough for compiling, nothing for launching."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty


def compile_for(card: OfflineCard) -> None:
    """From now on this process compiles for one card, and takes its meta tensors to be on it."""
    driver.set_active(OfflineDriver(card.arch))
    support.assume(card.capability, card.shared, card.name)


@contextmanager
def not_launched(on_compiled: Callable[[Any, float], None]) -> Iterator[None]:
    """Launches compile their kernel and stop there; each tells `on_compiled` what it would run,
    and how many seconds it took to have it."""
    original = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        del warmup
        if driver.active.get_current_target().arch < 90:  # which know no dependent launch
            options |= dict.fromkeys({"PDL", "launch_pdl"} & options.keys(), False)
        start = time.perf_counter()
        compiled = original(self, *args, grid=grid, warmup=True, **options)
        if compiled is not None:  # None: left out, see `chosen`
            on_compiled(compiled, time.perf_counter() - start)
        return compiled

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = original


@contextmanager
def chosen(choose: Callable[[str], bool]) -> Iterator[None]:
    """Only kernels that `choose` says yes to are compiled. It is asked by the kernel's name and
    what it is specialised to, at every launch of one that is not compiled yet."""

    def left_out(*, key: str, fn: Any, **_rest: Any) -> bool:
        return not choose(f"{fn.name} {key}")

    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = left_out
    try:
        yield
    finally:
        knobs.runtime.jit_cache_hook = before


def compile_launcher(compiled: Any) -> None:
    """Build what Triton launches a kernel with, where its version builds one for each kernel."""
    from triton.backends.nvidia import driver as nvidia

    if hasattr(nvidia, "make_launcher"):
        nvidia.CudaLauncher(compiled.src, compiled.metadata)
