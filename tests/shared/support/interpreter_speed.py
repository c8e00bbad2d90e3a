"""Make Triton's interpreter do once what it does over and over, and leave out what nobody looks at.

Nothing that a kernel computes changes. Most of the time that our kernels would take goes into:
- the language, looked through as a whole at each call of a device function, which finds nothing
  left to replace: the first call of the launch from a module that sees the same names has done it;
- sums and products of int32, computed again as int64 and held against the limits, for an assertion
  that only a debug build makes: the interpreter is none, and drops the result;
- the shape of each value and each type, checked and wrapped again, although there are few shapes;
- the NumPy type of a Triton type, looked for in a table that is built for each question.
"""

import dataclasses
from collections.abc import Callable
from types import FunctionType
from typing import Any

import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


def install() -> None:
    """Mend the interpreter of this process; call once, before any kernel runs."""
    _replace_the_language_once_a_launch()
    _drop_unread_overflow_checks()
    _remember_numpy_types()
    _remember_shapes()
    _pass_equal_shapes()


def _replace_the_language_once_a_launch() -> None:
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


def _drop_unread_overflow_checks() -> None:
    options = interpreter.interpreter_builder.options
    if not options.debug:
        unchecked = dataclasses.replace(options, sanitize_overflow=False)
        interpreter.interpreter_builder.options = unchecked


def _remember_numpy_types() -> None:
    find = interpreter._get_np_dtype
    known: dict[str, Any] = {}

    def remembered(dtype: Any) -> Any:
        name = dtype.scalar.name  # of a block, its elements'
        if name not in known:
            known[name] = find(dtype)
        return known[name]

    interpreter._get_np_dtype = remembered


def _plain(shape: Any) -> tuple[Any, ...]:
    """A shape of Triton's, in whichever wrapping, as something to look up by."""
    return tuple([one.value if isinstance(one, tl.constexpr) else one for one in shape])


def _remember_shapes() -> None:
    make_block, make_tensor = tl.block_type.__init__, tl.tensor.__init__
    blocks: dict[tuple[Any, ...], tuple[Any, int, str]] = {}
    tensors: dict[int, tuple[Any, Any, Any]] = {}

    def block(self: Any, element_ty: Any, shape: Any) -> None:
        key = _plain(shape)
        if key not in blocks:
            make_block(self, element_ty, shape)  # refuses what is no shape
            blocks[key] = (self.shape, self.numel, str(self.shape))
        self.element_ty = element_ty
        self.shape, self.numel, words = blocks[key]
        self.name = f"<{words}, {element_ty}>"

    def tensor(self: Any, handle: Any, kind: Any) -> None:
        shape = kind.shape if kind.is_block() else None
        if id(shape) not in tensors:
            make_tensor(self, handle, kind)
            tensors[id(shape)] = (shape, self.shape, self.numel)  # kept, so that its id stays its
        self.handle, self.type, self.dtype = handle, kind, kind.scalar
        _, self.shape, self.numel = tensors[id(shape)]

    tl.block_type.__init__, tl.tensor.__init__ = block, tensor


def _pass_equal_shapes() -> None:
    """Two blocks of one shape are broadcast to it by leaving them as they are."""
    broadcast, equal = TritonSemantic.broadcast_impl_value, tl.dtype.__eq__

    def broadcast_where_needed(self: Any, lhs: Any, rhs: Any) -> Any:
        if lhs.type.is_block() and rhs.type.is_block() and lhs.type.shape is rhs.type.shape:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    def same_or_equal(self: Any, other: Any) -> bool:
        return self is other or equal(self, other)

    TritonSemantic.broadcast_impl_value = broadcast_where_needed
    tl.dtype.__eq__ = same_or_equal
