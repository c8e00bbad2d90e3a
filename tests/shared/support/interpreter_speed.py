"""Make Triton's interpreter put its functions in the language's place once a launch.

It looks through all of `triton.language` at each call of a device function, which is half of the
time that our kernels take under it, and finds nothing left to replace: the first call of the launch
from a module that sees the same names has done it. Nothing else changes.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def install() -> None:
    """Mend the interpreter of this process; call once, before any kernel runs."""
    replace: Callable[[FunctionType], Any] = interpreter._patch_lang
    launch = interpreter.GridExecutor.__call__
    seen_by: dict[FunctionType, frozenset[str]] = {}
    replaced: set[str] = set()

    def replace_once(fn: FunctionType) -> Any:
        if fn not in seen_by:
            modules = [
                value for value in fn.__globals__.values() if value is tl or value is tl.core
            ]
            seen_by[fn] = frozenset(module.__name__ for module in modules)
        if seen_by[fn] and seen_by[fn] <= replaced:
            return None  # a device function's: its caller does not look at it
        replaced.update(seen_by[fn])
        return replace(fn)

    def launch_afresh(self: Any, *args: Any, **kwargs: Any) -> Any:
        replaced.clear()  # a launch puts the language back at its end
        return launch(self, *args, **kwargs)

    interpreter._patch_lang = replace_once
    interpreter.GridExecutor.__call__ = launch_afresh
