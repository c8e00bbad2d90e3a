"""Shapes of results on the meta device, found without torch's compiler.

Invariant: a result found here has the shape, dtype and strides that torch would give it. torch
computes those of some operations in Python, with modules of its compiler that take seconds to
import. An operation, or a form of one, that is not listed here is left to torch.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class MetaShapes(TorchFunctionMode):
    """While it is active, the operations listed here are answered without asking torch."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        find, values = _FINDERS.get(func), (*args, *kwargs.values())
        if find is not None and all(map(_simple, values)) and _is_meta(values[0]):
            found = find(*values)
            if found is not None:
                return found
        return func(*args, **kwargs)


def _simple(value: Any) -> bool:
    return isinstance(value, Tensor | int)


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _itself(out: Tensor, *_operands: Any) -> Tensor:
    return out


def _like(first: Tensor, *others: Any) -> Tensor | None:
    """Contiguous, as the first is. None: the others have another dtype, or more numbers."""
    tensors = [other for other in others if isinstance(other, Tensor)]
    fit = all(one.dtype == first.dtype and _spreads(one, first) for one in tensors)
    fit = fit and (first.dtype != torch.bool or len(tensors) == len(others))
    return first.new_empty(first.shape) if fit and first.is_contiguous() else None


def _truth(first: Tensor, *others: Any) -> Tensor | None:
    like = _like(first, *others)
    return None if like is None else like.new_empty(like.shape, dtype=torch.bool)


def _chosen(mask: Tensor, first: Any = None, other: Any = None) -> Tensor | None:
    if not isinstance(first, Tensor) or isinstance(other, Tensor) or mask.shape != first.shape:
        return None
    return _like(first, other)


def _spreads(other: Tensor, whole: Tensor) -> bool:
    """Whether it broadcasts to a shape."""
    sizes = zip(reversed(other.shape), reversed(whole.shape), strict=False)
    return other.ndim <= whole.ndim and all(size in (1, most) for size, most in sizes)


def _rows(table: Tensor, index: Any) -> Tensor | None:
    if not isinstance(index, Tensor) or index.dtype not in (torch.int32, torch.int64):
        return None
    return table.new_empty(*index.shape, *table.shape[1:])


def _reduced(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor | None:
    if dim != -1:
        return None
    dtype = x.dtype if x.is_floating_point() else torch.int64
    return x.new_empty((*x.shape[:-1], 1) if keepdim else x.shape[:-1], dtype=dtype)


def _picked(x: Tensor, _dim: int, index: Tensor) -> Tensor:
    return x.new_empty(index.shape)


def _largest(x: Tensor, count: int, dim: int = -1, *options: Any) -> Any:
    if dim != -1 or options:
        return None
    values = x.new_empty(*x.shape[:-1], count)
    return torch.return_types.topk((values, values.new_empty(values.shape, dtype=torch.int64)))


def _product(x: Tensor, y: Tensor, *out: Tensor) -> Tensor | None:
    return None if out else x.new_empty(*x.shape[:-1], y.shape[-1])


_FINDERS = {
    Tensor.addmm_: _itself,
    Tensor.add_: _itself,
    Tensor.masked_fill_: _itself,
    torch.empty_like: _like,
    Tensor.add: _like,
    Tensor.sub: _like,
    Tensor.clamp: _like,
    Tensor.log_softmax: _like,
    Tensor.__and__: _like,
    Tensor.__invert__: _like,
    Tensor.ge: _truth,
    Tensor.gt: _truth,
    Tensor.lt: _truth,
    torch.where: _chosen,
    Tensor.logsumexp: _reduced,
    Tensor.sum: _reduced,
    Tensor.gather: _picked,
    Tensor.topk: _largest,
    Tensor.__getitem__: _rows,
    torch.mm: _product,
    torch.bmm: _product,
}
