"""Make Triton's interpreter do once what it does over and over, and leave out what nobody looks at.

Nothing that a kernel computes changes. Most of the time that our kernels would take goes into:
- the language, looked through as a whole at each launch, which replaces the same names by the same
  things, and at each call of a device function, which finds nothing left to replace: the first call
  of the launch from a module that sees the same names has done it;
- sums and products of int32, computed again as int64 and held against the limits, for an assertion
  that only a debug build makes: the interpreter is none, and drops the result;
- the shape of each value and each type, checked and wrapped again, although there are few shapes,
  and whether a NumPy number is wider than its Triton type, which no kernel can bring about;
- the NumPy type of a Triton type, looked for in a table that is built for each question;
- the types of two operands, although they are equal, and numbers made constants, and blocks of
  them, although the kernel's text says the same ones each time.
"""

import dataclasses
import numbers
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
    _pass_equal_operands()
    _remember_constants()
    _call_builtins_at_once()


def _replace_the_language_once_a_launch() -> None:
    replace: Callable[[FunctionType], Any] = interpreter._patch_lang
    launch = interpreter.GridExecutor.__call__
    seen_by: dict[FunctionType, frozenset[str]] = {}
    replaced: set[str] = set()
    known: dict[frozenset[str], list[tuple[Any, str, Any]]] = {}

    def replace_once(fn: FunctionType) -> Any:
        if fn not in seen_by:
            modules = [
                value for value in fn.__globals__.values() if value is tl or value is tl.core
            ]
            seen_by[fn] = frozenset(module.__name__ for module in modules)
        if seen_by[fn] and seen_by[fn] <= replaced:
            return None  # a device function's: its caller does not look at it
        first = not replaced  # the kernel's own, of a language that is as it was
        replaced.update(seen_by[fn])
        if not first:
            return replace(fn)
        if seen_by[fn] not in known:
            scope = replace(fn)
            known[seen_by[fn]] = [(at, name, vars(at)[name]) for at, name, _ in scope._changes]
            return scope
        scope = interpreter._LangPatchScope()
        for at, name, value in known[seen_by[fn]]:
            scope.set_attr(at, name, value)
        return scope

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
    with_element = tl.block_type.with_element_ty
    blocks: dict[tuple[Any, ...], tuple[Any, int, str]] = {}
    types: dict[tuple[int, str], tl.block_type] = {}
    tensors: dict[int, tuple[Any, Any, Any]] = {}

    def block(self: Any, element_ty: Any, shape: Any) -> None:
        key = _plain(shape)
        if key not in blocks:
            make_block(self, element_ty, shape)  # refuses what is no shape
            blocks[key] = (self.shape, self.numel, str(self.shape))
        self.element_ty = element_ty
        self.shape, self.numel, words = blocks[key]
        self.name = f"<{words}, {element_ty}>"

    def with_element_ty(self: Any, element_ty: Any) -> tl.block_type:
        key = id(self.shape), element_ty.name  # `blocks` keeps the shape, so its id stays its
        if key not in types:
            types[key] = with_element(self, element_ty)
        return types[key]

    def tensor(self: Any, handle: Any, kind: Any) -> None:
        shape = kind.shape if kind.is_block() else None
        if id(shape) not in tensors:
            make_tensor(self, handle, kind)
            tensors[id(shape)] = (shape, self.shape, self.numel)  # kept, so that its id stays its
        self.handle, self.type, self.dtype = handle, kind, kind.scalar
        _, self.shape, self.numel = tensors[id(shape)]

    interpreter.TensorHandle.__post_init__ = lambda _: None
    tl.block_type.__init__, tl.tensor.__init__ = block, tensor
    tl.block_type.with_element_ty = with_element_ty


def _pass_equal_operands() -> None:
    """Two values of one type are brought to it by leaving them as they are; a number beside a value
    becomes what it became beside another such value."""
    check, equal = TritonSemantic.binary_op_type_checking_impl, tl.dtype.__eq__
    known: dict[tuple[Any, ...], Any] = {}

    def checked(self: Any, lhs: Any, rhs: Any, *how: bool, **named: bool) -> tuple[Any, Any]:
        if named:
            return check(self, lhs, rhs, *how, **named)
        if isinstance(rhs, numbers.Number) and isinstance(lhs, tl.tensor):
            key = (type(rhs), rhs, lhs.dtype.name, id(lhs.shape), how)
            if key not in known:
                left, right = check(self, lhs, rhs, *how)
                if left is lhs:
                    known[key] = right
                return left, right
            return lhs, known[key]
        if not how[2:] and _keep_their_types(lhs, rhs, how == (True, True)):
            return self.broadcast_impl_value(lhs, rhs)
        return check(self, lhs, rhs, *how)

    def same_or_equal(self: Any, other: Any) -> bool:
        if self is other:
            return True
        return self.name == other.name if type(other) is tl.dtype else equal(self, other)

    TritonSemantic.binary_op_type_checking_impl = checked
    tl.dtype.__eq__ = same_or_equal


def _keep_their_types(lhs: Any, rhs: Any, pointers: bool) -> bool:
    """Two numbers of one type; or a pointer and what is added to it, where pointers may be."""
    if not (isinstance(lhs, tl.tensor) and isinstance(rhs, tl.tensor)):
        return False
    if lhs.dtype.is_ptr():
        return pointers and rhs.dtype.is_int()
    return lhs.dtype is rhs.dtype


def _remember_constants() -> None:
    """And the blocks that they fill, read alone: nobody may write to what all share. And the shapes
    that two blocks are brought to."""
    make, broadcast = TritonSemantic.scalar_constant, TritonSemantic.broadcast_impl_value
    known: dict[tuple[Any, ...], tl.tensor] = {}
    filled: dict[tuple[int, int], tl.tensor] = {}
    constants: set[int] = set()
    together: dict[tuple[int, int], Any] = {}

    def scalar_constant(self: Any, value: Any, dtype: Any) -> tl.tensor:
        key = type(value), value, dtype.name
        if key not in known:
            known[key] = make(self, value, dtype)
            known[key].handle.data.flags.writeable = False
            constants.add(id(known[key]))
        return known[key]

    def widened(self: Any, value: Any, shape: Any) -> tl.tensor:
        if value.type.shape is shape:
            return value
        kind = tl.block_type(value.dtype, shape)
        return self.tensor(self.builder.create_broadcast(value.handle, shape), kind)

    def broadcast_known(self: Any, lhs: Any, rhs: Any) -> tuple[Any, Any]:
        if lhs.type.is_block() and rhs.type.is_block():
            key = id(lhs.type.shape), id(rhs.type.shape)
            if key not in together:
                found = broadcast(self, lhs, rhs)
                if len(lhs.type.shape) == len(rhs.type.shape):
                    together[key] = found[0].type.shape
                return found
            return widened(self, lhs, together[key]), widened(self, rhs, together[key])
        if id(rhs) not in constants or not lhs.type.is_block():
            return broadcast(self, lhs, rhs)
        key = id(rhs), id(lhs.type.shape)
        if key not in filled:
            filled[key] = broadcast(self, lhs, rhs)[1]
            filled[key].handle.data.flags.writeable = False
        return lhs, filled[key]

    TritonSemantic.scalar_constant = scalar_constant
    TritonSemantic.broadcast_impl_value = broadcast_known


def _call_builtins_at_once() -> None:
    """Without a look whether the interpreter has said who interprets."""

    def patch_attr(obj: Any, name: str, member: Any, _builder: Any, scope: Any) -> None:
        inner = getattr(member, "__wrapped__", member)

        def called(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = interpreter.interpreter_semantic
            return inner(*args, **kwargs)

        scope.set_attr(obj, name, called)

    interpreter._patch_attr = patch_attr
