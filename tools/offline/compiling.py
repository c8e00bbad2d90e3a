"""Triton's compiler without a GPU, and what the machine code that it makes costs.

To register kernels, write a function that calls them (tensors from `empty`) and decorate it with
`@cases(hot=...)`; import the kernels inside it, and its module in compile_offline.py.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel's module is imported

import torch
import triton
from torch import Tensor

from quire.kernels import support
from quire.kernels.cards import SHARED_LIMITS, OfflineCard
from quire.kernels.offline import compile_for, not_launched

_BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Report:
    """What one compiled kernel uses; sizes in bytes, counts of instructions in the code."""

    case: str
    kernel: str
    hot: bool
    warps: int
    stages: int
    registers: int
    shared: int
    spill_stores: int
    spill_loads: int
    wgmma: int
    mma: int
    cp_async: int
    tma: int
    wide_loads: int
    seconds: float
    arch: int

    @property
    def fault(self) -> str:
        """Why this kernel must not ship, or nothing. Spills are looked at on sm_90 alone."""
        limit = SHARED_LIMITS[self.arch]
        if self.shared > limit:
            return f"shared memory {self.shared} > {limit}"
        if self.arch == 90 and self.hot and self.spill_stores + self.spill_loads:
            return f"{self.spill_stores} spilled stores, {self.spill_loads} loads"
        return ""


Calls = Iterator[tuple[str, Callable[[], object]]]
_SOURCES: list[tuple[Callable[[], Calls], bool, bool]] = []


def cases(*, hot: bool, e4m3: bool = False) -> Callable[[Callable[[], Calls]], Callable[[], Calls]]:
    """Register a generator of (name, call that launches kernels). hot: a spill is a fault. e4m3:
    left out for a GPU without instructions for it."""

    def register(source: Callable[[], Calls]) -> Callable[[], Calls]:
        _SOURCES.append((source, hot, e4m3))
        return source

    return register


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without memory: aligned and contiguous, as the compiler sees it."""
    return torch.empty(*shape, dtype=dtype, device="meta")


@contextmanager
def recorded_launches() -> Iterator[list[tuple[Any, float]]]:
    """Compile instead of launching; collects (compiled kernel, seconds), each kernel once."""
    found: list[tuple[Any, float]] = []

    def note(compiled: Any, seconds: float) -> None:
        if all(compiled is not other for other, _ in found):
            found.append((compiled, seconds))

    with not_launched(note):
        yield found


def _dump(cubin: Path, option: str) -> str:
    command = [str(_BIN / "cuobjdump"), option, str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def report(compiled: Any, *, case: str, hot: bool, seconds: float) -> Report:
    """Read the machine code of one compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = dict(re.findall(r"(REG|SHARED):(\d+)", _dump(cubin, "--dump-resource-usage")))
        code = _dump(cubin, "-sass")

    def count(pattern: str) -> int:
        return len(re.findall(pattern, code))

    return Report(
        case=case,
        kernel=compiled.metadata.name,
        hot=hot,
        warps=compiled.metadata.num_warps,
        stages=compiled.metadata.num_stages,
        registers=int(usage["REG"]),
        shared=compiled.metadata.shared,
        spill_stores=count(r"\bSTL\b"),
        spill_loads=count(r"\bLDL\b"),
        wgmma=count(r"\b[HQ]GMMA\b"),
        mma=count(r"\b[HQ]MMA\b"),
        cp_async=count(r"\bLDGSTS\b"),
        tma=count(r"\bUTMALDG\b"),
        wide_loads=count(r"LDG\.E\.\S*128"),
        seconds=round(seconds, 2),
        arch=compiled.metadata.target.arch,
    )


def compile_all(
    only: Sequence[str] = ("",), *, hot_only: bool = False, arch: int = 90
) -> Iterator[Report]:
    """Compile every registered call whose name contains one of `only`. Once a process for one arch:
    the kernels' modules, imported by the calls, take what they are told of the card then."""
    compile_for(OfflineCard(arch, SHARED_LIMITS[arch], support.HOME_CARD))
    knows_e4m3 = support.knows_e4m3(torch.device("meta"))
    for source, hot, e4m3 in _SOURCES:
        if (hot_only and not hot) or (e4m3 and not knows_e4m3):
            continue
        for name, call in source():
            if not any(words in name for words in only):
                continue
            with recorded_launches() as found:
                call()
            for compiled, seconds in found:
                yield report(compiled, case=name, hot=hot, seconds=seconds)
