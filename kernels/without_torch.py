"""A placeholder for torch in a process that compiles kernels and ends without needing it.

Invariant: kernels' modules can be imported, and nothing of torch works: whatever is asked of it
is a name that stands for nothing. What a kernel is compiled to depends on none of it: its types
come with its launch.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_TORCH = "torch"


class _Nothing:
    """Whatever torch has: a type of a signature, a decorator, a constant."""

    def __getattr__(self, name: str) -> "_Nothing":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_arguments: Any, **_named: Any) -> "_Nothing":
        return self

    def __or__(self, _other: Any) -> "_Nothing":
        return self

    __ror__ = __or__


class _Module(ModuleType):
    def __getattr__(self, name: str) -> _Nothing:
        return _Nothing().__getattr__(name)


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, *_where: Any) -> ModuleSpec | None:
        of_torch = fullname.split(".")[0] == _TORCH
        return ModuleSpec(fullname, self, is_package=True) if of_torch else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, _module: ModuleType) -> None:
        pass


def begin() -> None:
    """From now on in this process, for good. Raises RuntimeError where torch is loaded."""
    if _TORCH in sys.modules:
        raise RuntimeError("torch is loaded already")
    sys.meta_path.insert(0, _Finder())
