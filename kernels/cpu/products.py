"""Calls of the compiled products, in place of torch's.

Invariant: a number of a result depends on its row of x and its row of the weight alone, bit for
bit: not on the rows beside it, their count, or the number of threads. products.c states the order
of sums. Torch's threads compute, so that there are never two pools of them.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from quire.kernels.cpu.library import LibraryUnavailable

_KINDS = {torch.bfloat16: 0, torch.int8: 1, torch.float32: 2}
_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
_ARGUMENTS = (
    *(_POINTER, _INT, _POINTER, _INT, _POINTER, _INT, _POINTER),
    *(_POINTER, _INT, _POINTER, _LONG, _LONG, _LONG),
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
        self, x: Tensor, weight: Tensor, scale: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """x @ weight.T, sums in fp32, times scale, rounded once to dtype.

        x: [T, K] bf16 or fp32; weight: [N, K] of x's dtype or int8, contiguous; scale: [N] fp32, of
        an int8 weight's rows; dtype: bf16 or fp32 -> [T, N].
        """
        x = x.contiguous()
        (rows, width), outputs = x.shape, weight.shape[0]
        y = torch.empty(rows, outputs, dtype=dtype)
        wide = torch.empty(self._wide_bytes(rows, width), dtype=torch.uint8)
        self._product(
            *threads(self._parallel),
            *(x.data_ptr(), _KINDS[x.dtype], weight.data_ptr(), _KINDS[weight.dtype]),
            scale.data_ptr() if scale is not None else None,
            *(y.data_ptr(), _KINDS[dtype], wide.data_ptr(), rows, outputs, width),
        )
        return y


def threads(parallel: int | None) -> tuple[int | None, int]:
    """What a call of the library takes first: who runs threads, and how many."""
    return parallel, torch.get_num_threads() if parallel else 1


def parallel() -> int | None:
    """The address of what runs a function on threads: torch's own OpenMP, which it has loaded.

    Raises LibraryUnavailable if torch computes on several threads that cannot be reached so.
    """
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError) as error:
        if torch.get_num_threads() == 1:
            return None
        raise LibraryUnavailable(f"torch's threads are not GNU OpenMP's: {error}") from error
    return ctypes.cast(function, _POINTER).value
