"""Which errors mean that the device is lost: nothing that it computes can be trusted any more.

Invariant: a device error stays with the process: every later call fails or, worse, returns. So any
error that names one counts as a loss, whatever its wording and whatever it was wrapped in. The
exception is a lack of memory, after which the device is as sound as before. An error of a
collective is always fatal: the ranks are no longer in step.
"""

import re
from collections.abc import Iterator

import torch

# torch: "CUDA error: ..." (with cuBLAS behind it), "CUDA driver error: ...", "cuDNN error: ...".
# Triton: "Triton Error [CUDA]: ...". NCCL and NVSHMEM: "Cuda failure ...". The driver's, the
# runtime's and the libraries' own names: CUDA_ERROR_X, cudaErrorX, CUBLAS_STATUS_X. NVML: "GPU is
# lost". The device's own messages come last: some callers pass them on without their origin.
_LOST = re.compile(
    r"\b(CUDA|HIP|cuDNN|MIOpen|cuBLAS(Lt)?|cuSPARSE(Lt)?|cuSOLVER|NVSHMEM|NVML)"
    r"( \w+){0,2} (error|failure)\b"
    r"|\bTriton Error \["
    r"|\bCUDA_(ERROR|EXCEPTION)_\w+|\b(cuda|hip)Error[A-Z]\w+"
    r"|\b(CUBLAS|CUDNN|CUSPARSE|CUSOLVER|CUFFT)_STATUS_\w+"
    r"|\bGPU is lost\b|\bfallen off the bus\b"
    r"|\billegal memory access\b|\bdevice-side assert\b|\bunspecified launch failure\b"
    r"|\bmisaligned address\b|\billegal instruction was encountered\b"
    r"|\buncorrectable (NVLink|ECC) error\b|\blaunch timed out and was terminated\b",
    re.IGNORECASE,
)
_WANT_OF_MEMORY = re.compile(
    r"(error( code)?( \d+)?|error \[\w+\]|failure( \d+)?): ?'?out of memory"
    r"|\w+_STATUS_ALLOC_FAILED\b|\b(cuda|hip)ErrorMemoryAllocation\b|\bCUDA_ERROR_OUT_OF_MEMORY\b",
    re.IGNORECASE,
)
_COLLECTIVE = re.compile(
    r"\bNCCL (error|failure|communicator|watchdog)|\bnccl(Unhandled\w+|System|Internal|Remote)\w*"
    r"|\bWorkNCCL\b|\bWatchdog caught collective",
    re.IGNORECASE,
)


def is_device_lost(error: BaseException) -> bool:
    """Whether the error, or one in its chain of causes and contexts, means that."""
    return any(_says_so(one) for one in _chain(error))


def _says_so(error: BaseException) -> bool:
    words = str(error)
    if _is_collective(error) or _COLLECTIVE.search(words):
        return True
    if isinstance(error, torch.OutOfMemoryError) or _WANT_OF_MEMORY.search(words):
        return False
    return isinstance(error, torch.AcceleratorError) or _LOST.search(words) is not None


def _is_collective(error: BaseException) -> bool:
    if not torch.distributed.is_available():
        return False
    return isinstance(error, torch.distributed.DistError)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes and contexts, and the members of groups; each once."""
    found: dict[int, BaseException] = {}
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in found:
            continue
        found[id(one)] = one
        yield one
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
