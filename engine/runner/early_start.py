"""Starts slow things that launches need, but not torch, while torch is still being imported.

Invariant: only time depends on it: whatever is missing is done later, where it is needed. It has no
heavy imports, so it can be called before them.
"""

import contextlib
import ctypes
import subprocess
import sys
import threading
from collections.abc import Sequence

from quire.engine import lifeline

DIGEST = (sys.executable, "-P", "-m", "quire.engine.runner.digest_main")

_digesting: list[subprocess.Popen[str]] = []  # at most one: its answer has not been taken


def start_driver() -> None:
    """Start the CUDA driver on a thread, beside the imports: it takes a third of a second and does
    not need the interpreter."""
    threading.Thread(target=_start_driver, name="quire-driver", daemon=True).start()


def start_digest(program: Sequence[str] = DIGEST) -> None:
    """Compute Triton's digest of itself in another process, beside the imports. A thread would be
    slowed down by them: it needs the interpreter a thousand times. Call it in a thread that
    outlives the process."""
    with contextlib.suppress(OSError):
        _digesting.append(lifeline.start_captured(program, stdin=subprocess.DEVNULL))


def digest_compiler() -> None:
    """Put that digest where Triton looks for it; computed here if the process has no result. Call
    it after the imports."""
    from quire.kernels import offline

    offline.digest_compiler(_found)


def digest_beside() -> None:
    """The same on a thread of its own."""
    threading.Thread(target=_digest_compiler, name="quire-digest", daemon=True).start()


def _found() -> str:
    """The process's answer; empty if there is none."""
    return _digesting.pop().communicate()[0] if _digesting else ""


def _start_driver() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libcuda.so.1").cuInit(0)


def _digest_compiler() -> None:
    with contextlib.suppress(ImportError):  # a machine may have no Triton
        digest_compiler()
