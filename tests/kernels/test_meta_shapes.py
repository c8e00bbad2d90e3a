"""Shapes found without torch are torch's, and what is not as simple is left to it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from quire.kernels import meta_shapes
from quire.kernels.meta_shapes import MetaShapes

X = torch.rand(4, 6)
IDS = torch.tensor([[2, 0, 1], [0, 0, 3]])
ROW, SUM = X[:, :1], X[:, :3]
CASES: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (Tensor.addmm_, (X.clone(), X, torch.rand(6, 6)), {}),
    (Tensor.add_, (X.clone(), ROW), {}),
    (Tensor.masked_fill_, (X.clone(), ROW > 0, 0), {}),
    (torch.empty_like, (X,), {}),
    (Tensor.add, (X.int(), 1), {}),
    (Tensor.sub, (X, ROW), {}),
    (Tensor.clamp, (IDS,), {"min": 0}),
    (Tensor.log_softmax, (X, -1), {}),
    (Tensor.__and__, (X > 0, ROW > 0), {}),
    (Tensor.__invert__, (X > 0,), {}),
    (Tensor.ge, (IDS.int(), 2), {}),
    (Tensor.gt, (X, ROW), {}),
    (Tensor.lt, (IDS, 2), {}),
    (torch.where, (IDS > 1, IDS, 0), {}),
    (Tensor.logsumexp, (X, -1), {"keepdim": True}),
    (Tensor.sum, (X > 0, -1), {}),
    (Tensor.sum, (X, -1), {}),
    (Tensor.gather, (X, 1, IDS), {}),
    (Tensor.topk, (X, 2), {"dim": -1}),
    (Tensor.__getitem__, (X, IDS), {}),
    (Tensor.__getitem__, (X, IDS[0].int()), {}),
    (torch.mm, (X, X.t()), {}),
    (torch.bmm, (X[None], X.t()[None].contiguous()), {}),
]
LEFT: list[tuple[Any, tuple[Any, ...]]] = [
    (Tensor.add, (ROW.contiguous(), X)),
    (Tensor.sub, (X.int(), ROW)),
    (torch.empty_like, (X.t(),)),
    (torch.where, (ROW > 0, X, 0)),
    (Tensor.add, (X > 0, 1)),
    (torch.where, (X > 0, X > 0, 2)),
    (torch.where, (X > 0,)),
    (Tensor.sum, (X, 0)),
    (Tensor.sum, (X,)),
    (Tensor.topk, (X, 2, 0)),
    (Tensor.topk, (X, 2, -1, True)),
    (torch.mm, (X, X.t(), X[:, :4])),
    (Tensor.__getitem__, (X, X > 0)),
    (Tensor.__getitem__, (X, 2)),
]


def meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def form(result: Any) -> list[tuple[Any, ...]]:
    results = [result] if isinstance(result, Tensor) else list(result)
    return [(one.shape, one.dtype, one.stride()) for one in results]


def test_what_is_found_is_what_torch_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def noted(find: Any) -> Any:
        return lambda *values: asked.append(found := find(*values)) or found

    monkeypatch.setattr(
        meta_shapes, "_FINDERS", {f: noted(g) for f, g in meta_shapes._FINDERS.items()}
    )
    assert {func for func, *_ in CASES} == set(meta_shapes._FINDERS)
    for func, args, options in CASES:
        with MetaShapes():
            found = func(*map(meta, args), **options)
        assert asked.pop() is found is not None, func
        assert form(found) == form(func(*args, **options)), func


def test_what_is_not_as_simple_is_left_to_torch() -> None:
    for func, args in LEFT:
        assert meta_shapes._FINDERS[func](*map(meta, args)) is None, (func, args)
    assert not meta_shapes._simple(torch.int8) and not meta_shapes._simple(
        None
    )  # as a dtype or memory
    with MetaShapes():  # nor is anything found on another device
        assert torch.equal(X - X, torch.zeros(4, 6))
