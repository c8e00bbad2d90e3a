"""What launches need and torch does not, begun where nobody waits for it.

Invariant: nothing depends on it but time: what is missing is done where it is needed. Without heavy
imports, so that it can be called before them.
"""

import contextlib
import ctypes
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial

from quire.engine import lifeline

DIGEST = (sys.executable, "-P", "-m", "quire.engine.runner.digest_main")

_digesting: list[subprocess.Popen[str]] = []  # at most one: its answer has not been taken


def start_driver(device: int | None = None) -> None:
    """Beside the imports: of a third of a second nothing needs the interpreter. device: the one
    that this process will use, if that is known."""
    start = partial(_start_driver, device)
    threading.Thread(target=start, name="quire-driver", daemon=True).start()


def start_digest(program: Sequence[str] = DIGEST) -> None:
    """Triton's digest of itself, by a process beside the imports, which a thread would hold up: it
    asks for the interpreter a thousand times. Call it in a thread that lives as long."""
    with contextlib.suppress(OSError):
        _digesting.append(lifeline.start_captured(program, stdin=subprocess.DEVNULL))


def digest_compiler() -> None:
    """Have what was begun, or find it here, where Triton looks for it. Behind the imports."""
    from quire.kernels import offline

    offline.digest_compiler(_found)


def digest_beside() -> None:
    """As above, on a thread of its own."""
    threading.Thread(target=_digest_compiler, name="quire-digest", daemon=True).start()


def _found() -> str:
    """What the process has said; nothing where there is none."""
    return _digesting.pop().communicate()[0] if _digesting else ""


def _start_driver(device: int | None) -> None:
    with contextlib.suppress(OSError, AttributeError):
        driver = ctypes.CDLL("libcuda.so.1")
        driver.cuInit(0)
        if device is not None:  # its context, which torch will find
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), device)


def _digest_compiler() -> None:
    with contextlib.suppress(ImportError):  # a machine may have no Triton
        digest_compiler()
