"""NCCL's all-gather: every rank's bytes, in rank order, on the current stream.

It uses the library that comes with torch, through its C interface, so that no thread of a process
group watches, times out or aborts what a graph has captured. How long a rank may be silent is left
to the watchdog.

Invariant: multicast over NVLink is off. On one node NCCL listens on the loopback interface, unless
NCCL_SOCKET_IFNAME says otherwise; with several nodes it listens where that says, or where NCCL
chooses.
"""

import ctypes
import os

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store

from quire.engine.errors import ConfigError, RankError

_LIBRARY = "libnccl.so.2"
_KEY = "quire-nccl"
_BYTES = 1  # ncclUint8
_ALWAYS = {
    "NCCL_NVLS_ENABLE": "0",  # multicast
    "NCCL_GRAPH_REGISTER": "0",  # a graph's buffers are torch's to give and take
}


class _UniqueId(ctypes.Structure):
    """Identifies a communicator to all its ranks."""

    _fields_ = (("bytes", ctypes.c_ubyte * 128),)


class Communicator:
    """All ranks, for as long as the process lives. Calls enqueue; none waits for the device."""

    def __init__(
        self, store: Store, rank: int, size: int, device: torch.device, *, one_node: bool = True
    ) -> None:
        """Returns when all ranks have joined. Raises ConfigError if there is no NCCL, and RankError
        if it fails."""
        os.environ.update(_ALWAYS)
        if one_node:
            os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        self._nccl = _library()
        self._device = device
        self._size = size
        unique = _UniqueId()
        if rank == 0:
            self._check(self._nccl.ncclGetUniqueId(ctypes.byref(unique)))
            store.set(_KEY, bytes(unique.bytes).hex())
        else:
            told = bytes.fromhex(store.get(_KEY).decode())
            ctypes.memmove(unique.bytes, told, ctypes.sizeof(unique))
        self._handle = ctypes.c_void_p()
        with torch.cuda.device(device):
            self._check(self._nccl.ncclCommInitRank(ctypes.byref(self._handle), size, unique, rank))

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's x: [...] -> [size, ...]."""
        x = x.contiguous()
        out = torch.empty((self._size, *x.shape), dtype=x.dtype, device=x.device)
        stream = torch.cuda.current_stream(self._device).cuda_stream
        self._check(
            self._nccl.ncclAllGather(
                x.data_ptr(), out.data_ptr(), x.nbytes, _BYTES, self._handle, stream
            )
        )
        return out

    def _check(self, result: int) -> None:
        if result:
            words = self._nccl.ncclGetErrorString(result).decode(errors="replace")
            raise RankError(f"the ranks do not exchange any more: NCCL: {words}")


def _library() -> ctypes.CDLL:
    """NCCL with its calls declared. Raises ConfigError."""
    try:
        nccl = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise ConfigError(
            f"tensor_parallel_size: several GPUs need NCCL, which is not there: {error}"
        ) from error
    pointer, number = ctypes.c_void_p, ctypes.c_int
    nccl.ncclGetErrorString.argtypes, nccl.ncclGetErrorString.restype = [number], ctypes.c_char_p
    nccl.ncclGetUniqueId.argtypes = [ctypes.POINTER(_UniqueId)]
    nccl.ncclCommInitRank.argtypes = [ctypes.POINTER(pointer), number, _UniqueId, number]
    nccl.ncclAllGather.argtypes = [pointer, pointer, ctypes.c_size_t, number, pointer, pointer]
    return nccl
