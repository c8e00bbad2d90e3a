"""What launches need and torch does not, begun on a thread where nobody waits for it.

Invariant: nothing depends on it but time: what is missing is done where it is needed. Without heavy
imports, so that it can be called before them.
"""

import contextlib
import ctypes
import threading


def start_driver() -> None:
    """Beside the imports: of a third of a second nothing needs the interpreter."""
    threading.Thread(target=_start_driver, name="quire-driver", daemon=True).start()


def digest_compiler() -> None:
    """Behind the imports, which it would hold up: it asks for the interpreter a thousand times."""
    threading.Thread(target=_digest_compiler, name="quire-digest", daemon=True).start()


def _start_driver() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libcuda.so.1").cuInit(0)


def _digest_compiler() -> None:
    with contextlib.suppress(ImportError):  # a machine may have no Triton
        from quire.kernels import offline

        offline.digest_compiler()
