"""Launches of kernels written down, to be compiled by a process that has no torch.

Invariant: a launch that was written and read again is specialized as it was: a kernel's name and
its key in Triton's cache are the same. Needs Triton, and nothing of torch.

A launch is a list of JSON: the kernel ("linear.skinny:_skinny_kernel", of this package), its
arguments in order, its arguments by name with Triton's own options. Of a tensor only what a kernel
is specialized to is kept: "*bfloat16", or "*bfloat16?" where its address is no multiple of 16. A
type that a kernel is given is "tl.bf16". A tile's descriptor is an object: its tensor ("of"), sizes
("shape", "strides", "block"), whether it is for a kernel in Gluon ("gluon").
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

Written = list[Any]

_TYPE = "tl."
_ALIGNED = 16  # bytes, by which Triton tells addresses apart
_BYTES = {"int64": 8, "int32": 4, "float32": 4, "bfloat16": 2, "float16": 2}  # others have one


@dataclass(frozen=True)
class _Type:
    """Stands in for a torch.dtype."""

    name: str

    @property
    def itemsize(self) -> int:
        return _BYTES.get(self.name, 1)

    def __str__(self) -> str:  # by which Triton knows it
        return f"torch.{self.name}"


@dataclass(frozen=True)
class _Pointer:
    """Stands in for a tensor."""

    dtype: _Type
    address: int

    def data_ptr(self) -> int:
        return self.address


def written(compiling: Callable[[], Any]) -> Written:
    """A launch, by what would compile its kernel (`offline.Kernel`). Raises TypeError for an
    argument that cannot be written down."""
    assert isinstance(compiling, partial)
    kernel, *arguments = compiling.args
    options = {
        name: _written(value)
        for name, value in compiling.keywords.items()
        if name not in ("grid", "warmup")
    }
    module = kernel.fn.__module__.removeprefix(f"{__package__}.")
    return [f"{module}:{kernel.fn.__qualname__}", [*map(_written, arguments)], options]


def launch(one: Written) -> None:
    """Launch it as it was written; to be called where launches are only noted (`offline.noted`).
    Raises ImportError or AttributeError if there is no such kernel any more."""
    kernel, arguments, options = one
    module, name = kernel.split(":")
    function = getattr(import_module(f"{__package__}.{module}"), name)
    named = {name: _read(value) for name, value in options.items()}
    function.run(*map(_read, arguments), grid=(1,), warmup=False, **named)


def _written(value: Any) -> Any:
    if hasattr(value, "block_shape"):
        sizes = {"shape": value.shape, "strides": value.strides, "block": value.block_shape}
        box = {name: [*map(int, numbers)] for name, numbers in sizes.items()}
        return {"of": _written(value.base), "gluon": hasattr(value, "layout"), **box}
    if hasattr(value, "data_ptr"):
        unaligned = "?" if value.data_ptr() % _ALIGNED else ""
        return f"*{str(value.dtype).removeprefix('torch.')}{unaligned}"
    if isinstance(value, tl.dtype):
        return f"{_TYPE}{value.name}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} cannot be written down")


def _read(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("*"):
        return _Pointer(_Type(value.strip("*?")), int(value.endswith("?")))
    if isinstance(value, str) and value.startswith(_TYPE):
        return tl.dtype(value.removeprefix(_TYPE))
    if isinstance(value, dict):
        base, shape, block = _read(value["of"]), value["shape"], value["block"]
        if not value["gluon"]:
            return TensorDescriptor(base, shape, value["strides"], block)
        from quire.kernels.gluon_boxes import box  # not for every version of Triton

        return box(base, shape, block, value["strides"])
    return value
