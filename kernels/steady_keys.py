"""Triton's names of kernels, made to depend on the kernels alone.

A kernel's name in the cache has the global constants of the functions that it calls, as Triton is
written only of those whose own key was asked for before: so it depends on which of the kernels that
share a function came first, and a process that compiles would not find the names that an engine
asks for.

Invariant: once this is imported, a function's key is known before its caller's is made.
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
