"""Compiles kernels without launching them, for a GPU that need not be present.

Invariant: what is compiled here has the key in Triton's cache that the launch itself would ask for:
the launchers are called unchanged, on meta tensors, whose addresses begin at zero and so are
aligned as a device's are. A process that has started this never launches anything again.
"""

import contextlib
import hashlib
import inspect
import logging
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from triton import __version__, knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from quire.kernels import support
from quire.kernels.cards import OfflineCard as OfflineCard

_digesting = threading.Lock()
_DRIVER_FOLDER = "TRITON_LIBCUDA_PATH"
_FUNCTION = re.compile(r"\bcu[A-Z]\w+")  # of the driver
Compiling = Callable[[], Any]  # gives the compiled kernel


@dataclass(frozen=True)
class Kernel:
    """One that is not compiled yet. compiling: gives it compiled. signature: the types of its
    arguments, by which it is launched. name: see `name_of`."""

    compiling: Compiling
    signature: tuple[Any, ...]
    name: str


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


def name_of(key: str, fn: Any) -> str:
    """A kernel by its function and what it is specialised to, as Triton tells its hooks: the same
    in each process that launches it on a kind of card; short, so that it can be told at once."""
    return f"{fn.name} {hashlib.sha256(key.encode()).hexdigest()}"


def compile_for(card: OfflineCard) -> None:
    """From now on this process compiles for one card, and takes its meta tensors to be on it."""
    driver.set_active(OfflineDriver(card.arch))
    support.assume(card.capability, card.shared, card.name)


@contextmanager
def not_launched(on_compiled: Callable[[Any, float], None]) -> Iterator[None]:
    """Launches compile their kernel and stop there; each tells `on_compiled` what it would run,
    and how many seconds it took to have it."""

    def launch(compiling: Compiling) -> Any:
        start = time.perf_counter()
        compiled = compiling()
        on_compiled(compiled, time.perf_counter() - start)
        return compiled

    with _launched_by(launch):
        yield


@contextmanager
def nothing_launched() -> Iterator[None]:
    """Within it launches do nothing and compile nothing: what they would write stays unchanged."""
    with _launched_by(lambda _compiling: None):
        yield


@contextmanager
def noted() -> Iterator[dict[str, Kernel]]:
    """Launches do nothing but note each kernel that is not compiled yet, by its name and what it is
    specialised to."""
    found: dict[str, Kernel] = {}
    before = knobs.runtime.jit_cache_hook

    def launch(compiling: Compiling) -> Any:
        def leave_out(*, key: str, fn: Any, **more: Any) -> bool:
            signature = tuple(more["compile"]["signature"].values())
            name = name_of(key, fn)
            found.setdefault(name, Kernel(compiling, signature, name))
            return True

        knobs.runtime.jit_cache_hook = leave_out
        return compiling()

    try:
        with _launched_by(launch):
            yield found
    finally:
        knobs.runtime.jit_cache_hook = before


@contextmanager
def _launched_by(launch: Callable[[Compiling], Any]) -> Iterator[None]:
    """A kernel's launch is a call of `launch`, with what would compile it."""
    original = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        del warmup
        if driver.active.get_current_target().arch < 90:  # which know no dependent launch
            options |= dict.fromkeys({"PDL", "launch_pdl"} & options.keys(), False)
        return launch(partial(original, self, *args, grid=grid, warmup=True, **options))

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = original


def digest_compiler(found: Callable[[], str] = str) -> None:
    """Let Triton have the digest of itself, which names each kernel in its cache: half a GiB, which
    it reads at a process's first kernel otherwise. Once, and whoever asks meanwhile waits.

    found: gives the digest where another process has found it, or nothing."""
    from triton.runtime import cache

    with _digesting:
        known = found()
        if not hasattr(cache, "triton_key"):  # its version has it elsewhere
            return
        if known.startswith(__version__):
            cache.triton_key = lambda: known
        cache.triton_key()


def compile_launcher(compiled: Any) -> None:
    """Build what launches kernels of a signature, where Triton's version builds that: it hands
    arguments on, over which -O3, which Triton asks for, takes a compiler twice as long as -Og."""
    from triton.backends.nvidia import driver as nvidia

    if not hasattr(nvidia, "make_launcher"):
        return
    build = nvidia.compile_module_from_src
    if "ccflags" in inspect.signature(build).parameters:  # which come behind -O3
        nvidia.compile_module_from_src = partial(build, ccflags=["-Og"])
    try:
        nvidia.CudaLauncher(compiled.src, compiled.metadata)
    except ImportError:
        pass  # it is kept, but cannot be loaded without NVIDIA's driver
    finally:
        nvidia.compile_module_from_src = build


def build_driver_module() -> None:
    """What Triton asks the driver with, for a process with a GPU to find. Raises RuntimeError
    where there is no C compiler, and CalledProcessError where that fails."""
    from triton.backends.nvidia import driver as nvidia

    with contextlib.suppress(ImportError):  # as above
        nvidia.CudaUtils()


@contextmanager
def linkable() -> Iterator[None]:
    """Within, this process and those that it starts can build what Triton links with NVIDIA's
    driver, where there is none: with a library of its name and functions that do nothing. Raises as
    `build_driver_module`."""
    from triton.backends.nvidia import driver as nvidia

    try:
        nvidia.libcuda_dirs()
    except (AssertionError, OSError, subprocess.SubprocessError):
        pass
    else:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="quire-link-") as folder:
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise RuntimeError("no C compiler is found")
        sources = map(Path(nvidia.__file__).with_suffix, (".c", ".py"))
        functions = {name for file in sources for name in _FUNCTION.findall(file.read_text())}
        named = "-Wl,-soname,libcuda.so.1", "-o", f"{folder}/libcuda.so.1"
        subprocess.run(
            [compiler, "-shared", *named, "-x", "c", "-"],
            input="".join(f"void {name}(void) {{}}\n" for name in sorted(functions)),
            text=True,
            check=True,
        )  # a linker leaves out a library of which nothing is used
        os.environ[_DRIVER_FOLDER] = folder
        log = logging.getLogger("triton.runtime.build")
        before = log.level
        log.setLevel(logging.ERROR)  # each time that it cannot be loaded
        try:
            yield
        finally:
            log.setLevel(before)
            del os.environ[_DRIVER_FOLDER]
            nvidia.libcuda_dirs.cache_clear()
            nvidia.library_dirs.cache_clear()
