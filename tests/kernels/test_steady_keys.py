"""A kernel's name in Triton's cache is the same whichever kernel of its module was asked first."""

import importlib.util
from pathlib import Path

import pytest

MODULE = """
import triton
import triton.language as tl

ONE = tl.constexpr(1)


@triton.jit
def shared(x):
    return x + ONE


@triton.jit
def first(place):
    tl.store(place, shared(tl.load(place)))


@triton.jit
def second(place):
    tl.store(place, shared(tl.load(place)))
"""


def keys(path: Path, *order: str) -> dict[str, str]:
    """Of a module that is loaded anew."""
    spec = importlib.util.spec_from_file_location("shares", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: getattr(module, name).cache_key for name in order}


def test_names_do_not_depend_on_their_order(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    import quire.kernels.triton_ops  # noqa: F401

    path = tmp_path / "shares.py"
    path.write_text(MODULE)
    assert keys(path, "first", "second") == keys(path, "second", "first")
