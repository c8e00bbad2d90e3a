"""The compiled products: built from the C files at first use, kept in a cache directory.

Invariant: a library is loaded only if it was built from exactly these sources, options and
compiler, is complete, and cannot have been written by anybody else: its name holds a digest of what
it is built from, and `sealed` keeps it. If the directory cannot be written the log says so, and the
library is built for this process alone.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

from quire.kernels.sealed import SealedFolder, writable

LEVELS = {  # of instructions, the best first, and what the kernel of the system calls them
    "avx512_bf16": ("avx512f", "avx512_bf16", "avx2", "fma"),
    "avx512": ("avx512f", "avx2", "fma"),
    "avx2": ("avx2", "fma"),
}
_SOURCES = ("products.c", "attention.c", "tile.h", "numbers.h")
_OPTIONS = (
    *("-O3", "-std=gnu11", "-fPIC", "-shared"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),  # none changes a result
)
_SECONDS = 120.0  # that a compiler may take
_LIBRARY = "products.so"


class LibraryUnavailable(RuntimeError):
    """The products cannot be compiled or loaded here; the text says why."""


def machine_level(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The best level that this machine has. Raises LibraryUnavailable if it has none."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise LibraryUnavailable(f"they are written for x86-64, this is {platform.machine()}")
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError as error:
        raise LibraryUnavailable(f"what the CPU can do is not known: {error}") from error
    flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    for level, needed in LEVELS.items():
        if flags.issuperset(needed):
            return level
    raise LibraryUnavailable("the CPU lacks AVX2 and FMA")


def cache_directory() -> Path:
    """The directory for compiled libraries: $XDG_CACHE_HOME/quire, or ~/.cache/quire."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "quire"


def load(level: str, directory: Path) -> ctypes.CDLL:
    """The library of a level, from the directory or compiled. Raises LibraryUnavailable."""
    command = _compiler()
    name = f"products-{level}-{_key(level, command)}"
    kept = SealedFolder(directory)
    if kept.is_whole(name) and kept.is_ours(name):
        with contextlib.suppress(LibraryUnavailable):  # another process may be at replacing it
            return _opened(directory / name / _LIBRARY)
    try:
        with writable(directory, what="compiled products").making(name) as place:
            _compile(level, command, place / _LIBRARY)
            return _opened(place / _LIBRARY)
    except OSError as error:
        raise LibraryUnavailable(str(error)) from error


def _compiler() -> list[str]:
    """$CC or cc, and its options."""
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    found = shutil.which(command[0])
    if found is None:
        raise LibraryUnavailable(f"no C compiler: {command[0]} is not found")
    return [found, *command[1:]]


def _key(level: str, command: list[str]) -> str:
    """Names what a library is made from: sources, level, options, compiler and its version."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for part in (level, *_OPTIONS, platform.machine(), *command, _run([*command, "--version"])):
        digest.update(part.encode() + b"\0")
    for name in _SOURCES:
        digest.update((here / name).read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _compile(level: str, command: list[str], target: Path) -> None:
    here = Path(__file__).parent
    sources = [str(here / name) for name in _SOURCES if name.endswith(".c")]
    compiler, *options = command
    chosen = [*_OPTIONS, *options, f"-D{level.upper()}"]
    _run([compiler, *chosen, "-o", str(target), *sources, "-lm"])


def _run(command: list[str]) -> str:
    """A command's output. Raises LibraryUnavailable with the first line of its error message."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LibraryUnavailable(f"{command[0]}: {error}") from error
    if done.returncode:
        said = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[0]
        raise LibraryUnavailable(f"{command[0]}: {said}")
    return done.stdout


def _opened(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryUnavailable(str(error)) from error
