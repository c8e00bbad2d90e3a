"""Calls the compiled products, in place of torch's.

Invariant: a number of a result depends on its row of x and its row of the weight alone, bit for
bit: not on the rows beside it, their number, or the number of threads. products.c states the order
of sums. They run on torch's threads, so that there are never two thread pools.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from quire.kernels.cpu.library import LibraryUnavailable

_KINDS = {torch.bfloat16: 0, torch.int8: 1, torch.float32: 2}
_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
_ARGUMENTS = (
    *(_POINTER, _INT, _POINTER, _INT, _POINTER, ctypes.c_float, _POINTER, _INT, _POINTER),
    *(_POINTER, _POINTER, _INT, _POINTER, _POINTER, _LONG, _LONG, _LONG),
)


class Products:
    """The products of a library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._product: Any = library.quire_product
        self._product.argtypes, self._product.restype = _ARGUMENTS, None
        self._wide_bytes: Any = library.quire_wide_bytes
        self._wide_bytes.argtypes, self._wide_bytes.restype = (_LONG, _LONG), _LONG
        self._parallel = parallel()

    def takes(self, x: Tensor, weight: Tensor) -> bool:
        """Whether there is a product for these types: bf16 by bf16, float32 by float32, either
        by int8."""
        if x.dtype not in (torch.bfloat16, torch.float32) or x.is_cuda:
            return False
        return weight.dtype in (x.dtype, torch.int8)

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        scale: Tensor | None,
        dtype: torch.dtype,
        *,
        norm_weight: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
        silu: bool = False,
    ) -> Tensor:
        """x @ weight.T, sums in fp32, times scale, rounded once to dtype.

        x: [T, K] bf16 or fp32; weight: [N, K] of x's dtype or int8, contiguous; scale: [N] fp32, of
        an int8 weight's rows; dtype: bf16 or fp32 -> [T, N]. norm_weight [K], eps, residual [T, N]
        of dtype, silu (then -> [T, N / 2]): as `linear` has them.
        """
        x = x.contiguous()
        (rows, width), outputs = x.shape, weight.shape[0]
        y = torch.empty(rows, outputs, dtype=dtype)
        activated = torch.empty(rows, outputs // 2, dtype=dtype) if silu else None
        wide = torch.empty(self._wide_bytes(rows, width), dtype=torch.uint8)
        residual = None if residual is None else residual.contiguous()
        self._product(
            *threads(self._parallel),
            *(x.data_ptr(), _KINDS[x.dtype], address(norm_weight), eps),
            *(weight.data_ptr(), _KINDS[weight.dtype], address(scale), address(residual)),
            *(y.data_ptr(), _KINDS[dtype], address(activated), wide.data_ptr()),
            *(rows, outputs, width),
        )
        return y if activated is None else activated


def address(tensor: Tensor | None) -> int | None:
    """The address of a tensor's numbers."""
    return None if tensor is None else tensor.data_ptr()


def threads(parallel: int | None) -> tuple[int | None, int]:
    """The first arguments of a library call: what runs threads, and how many."""
    return parallel, torch.get_num_threads() if parallel else 1


def parallel() -> int | None:
    """The address of the function that runs work on threads: torch's own OpenMP, which it has
    loaded. Raises LibraryUnavailable if torch computes on several threads that cannot be used like
    this."""
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError) as error:
        if torch.get_num_threads() == 1:
            return None
        raise LibraryUnavailable(f"torch's threads are not GNU OpenMP's: {error}") from error
    return ctypes.cast(function, _POINTER).value
