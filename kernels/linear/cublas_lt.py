"""cuBLASLt through its C interface: FP8 products with block scales, without a workspace.

Invariant: the numbers are those of torch's own call from 128 rows on (with fewer rows and a
workspace, it may split K). torch's call gives the library a workspace, which can only be disabled
for all products of a process. With one, the library hands out tiles by a counter that it clears
before each product; without one, tiles are assigned beforehand. Its matrices are column-major: D
[N, T] is A [K, N], the weight, transposed, times B [K, T], the activations.
"""

import ctypes
import logging
import os
import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quire.kernels.weight import Quantized, Weight

log = logging.getLogger(__name__)

# cublasComputeType_t, cudaDataType, cublasLtMatmulMatrixScale_t, cublasLtMatmulDescAttributes_t
_SUMS_FP32 = 68
_FP32, _BF16, _E4M3 = 0, 14, 28
_GROUPS, _BLOCKS = 4, 5  # fp32 for each 128 of K; for each 128 x 128
_TRANSPOSE_A, _SCALE_A, _SCALE_B, _SCALES_OF_A, _SCALES_OF_B = 3, 17, 18, 31, 32
_ONE, _ZERO = ctypes.c_float(1.0), ctypes.c_float(0.0)


class Algorithm(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t, which begins with a cublasLtMatmulAlgo_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("room", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


class _Plan(NamedTuple):
    """How matrices of one size are multiplied. description: holds the scales of one call."""

    description: ctypes.c_void_p
    a: ctypes.c_void_p
    b: ctypes.c_void_p
    d: ctypes.c_void_p
    algorithm: Algorithm


class CublasLt:
    """The library that torch has loaded, on one device."""

    def __init__(self, device: torch.device) -> None:
        """Raises OSError where it is not there, and RuntimeError where it refuses."""
        self._device = device
        self._lt = _library()
        self._one_call = threading.Lock()
        self._plans: dict[tuple[int, int, int], _Plan | None] = {}  # None: refused
        with torch.cuda.device(device):
            self._handle = self._made("cublasLtCreate")

    def product(self, x: Quantized, weight: Weight, out: Tensor) -> bool:
        """out = x @ weight.T; or False, where the library does not know how without room.

        x: [T, K], T a multiple of 16, the scales of a group side by side; out: [T, N] bf16. Raises
        RuntimeError where it fails."""
        assert weight.scale is not None
        size = (*weight.data.shape, x.data.shape[0])
        scales = weight.scale.data_ptr(), x.scale.data_ptr()
        result = out.data_ptr()
        stream = torch.cuda.current_stream(self._device).cuda_stream
        with self._one_call:
            if size not in self._plans:
                self._plans[size] = self._plan_or_none(size, scales)
            plan = self._plans[size]
            if plan is None:
                return False
            self._scale(plan.description, scales)
            self._call(
                "cublasLtMatmul", self._handle, plan.description,
                ctypes.byref(_ONE), weight.data.data_ptr(), plan.a, x.data.data_ptr(), plan.b,
                ctypes.byref(_ZERO), result, plan.d, result, plan.d,
                ctypes.byref(plan.algorithm), None, 0, stream,
            )  # fmt: skip
        return True

    def _plan_or_none(self, size: tuple[int, int, int], scales: tuple[int, int]) -> _Plan | None:
        try:
            return self._plan(*size, scales)
        except RuntimeError as error:
            log.warning("FP8 products of %d x %d with %d rows are given room: %s", *size, error)
            return None

    def _plan(self, n: int, k: int, rows: int, scales: tuple[int, int]) -> _Plan:
        description = self._made("cublasLtMatmulDescCreate", _SUMS_FP32, _FP32)
        for name, value in ((_TRANSPOSE_A, 1), (_SCALES_OF_A, _BLOCKS), (_SCALES_OF_B, _GROUPS)):
            self._set(description, name, ctypes.c_int32(value))
        self._scale(description, scales)  # without which it says nothing
        a = self._made("cublasLtMatrixLayoutCreate", _E4M3, k, n, k)
        b = self._made("cublasLtMatrixLayoutCreate", _E4M3, k, rows, k)
        d = self._made("cublasLtMatrixLayoutCreate", _BF16, n, rows, n)
        preference = self._made("cublasLtMatmulPreferenceCreate")  # from the first on: no room
        algorithm, count = Algorithm(), ctypes.c_int()
        self._call(
            "cublasLtMatmulAlgoGetHeuristic", self._handle, description, a, b, d, d, preference,
            1, ctypes.byref(algorithm), ctypes.byref(count),
        )  # fmt: skip
        self._call("cublasLtMatmulPreferenceDestroy", preference)
        if not count.value:
            raise RuntimeError("cublasLtMatmulAlgoGetHeuristic: it knows none")
        return _Plan(description, a, b, d, algorithm)

    def _scale(self, description: ctypes.c_void_p, scales: tuple[int, int]) -> None:
        for name, pointer in zip((_SCALE_A, _SCALE_B), scales, strict=True):
            self._set(description, name, ctypes.c_void_p(pointer))

    def _set(self, description: ctypes.c_void_p, name: int, value: Any) -> None:
        size = ctypes.sizeof(value)
        self._call("cublasLtMatmulDescSetAttribute", description, name, ctypes.byref(value), size)

    def _made(self, create: str, *of: int) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self._call(create, ctypes.byref(made), *of)
        return made

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._lt, function)(*arguments)
        if status:
            words = self._lt.cublasLtGetStatusName(status).decode(errors="replace")
            raise RuntimeError(f"{function}: {words}")


def _library() -> ctypes.CDLL:
    """The library that torch has loaded, with its functions declared. Raises OSError if torch
    contains it statically."""
    major = (torch.version.cuda or "").split(".")[0]
    lt = ctypes.CDLL(f"libcublasLt.so.{major}", mode=os.RTLD_NOLOAD)
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
    of = {
        "cublasLtCreate": [pointer],
        "cublasLtMatmulDescCreate": [pointer, number, number],
        "cublasLtMatmulDescSetAttribute": [pointer, number, pointer, size],
        "cublasLtMatrixLayoutCreate": [pointer, number, *[ctypes.c_uint64] * 2, ctypes.c_int64],
        "cublasLtMatmulPreferenceCreate": [pointer],
        "cublasLtMatmulPreferenceDestroy": [pointer],
        "cublasLtMatmulAlgoGetHeuristic": [*[pointer] * 7, number, pointer, pointer],
        "cublasLtMatmul": [*[pointer] * 14, size, pointer],
        "cublasLtGetStatusName": [number],
    }
    for function, arguments in of.items():
        getattr(lt, function).argtypes = arguments
    lt.cublasLtGetStatusName.restype = ctypes.c_char_p
    return lt
