"""Makes Triton's cache keys depend on the kernel alone.

In Triton, a kernel's key includes the global constants of the functions it calls only if their own
keys were computed before. So it depends on which of the kernels that share a function came first,
and the process that compiles would use other keys than the engine.

Invariant: once this is imported, a function's key is computed before its caller's.
"""

from collections.abc import Callable
from typing import Any

from triton.runtime import jit


def _known_before(update: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    def update_hash(finder: Any, function: Any) -> None:
        _ = getattr(function, "cache_key", None)
        update(finder, function)

    return update_hash


if hasattr(jit.DependenciesFinder, "_update_hash"):  # where its version has it
    jit.DependenciesFinder._update_hash = _known_before(jit.DependenciesFinder._update_hash)
