"""Which errors end an engine: every form in which a lost device is told, and nothing else."""

from collections.abc import Callable

import pytest
import torch

from quire.engine.errors import CapacityError
from quire.engine.runner.device_errors import is_device_lost
from quire.engine.runner.runner import Runner

# As torch 2.8, Triton 3.4, the driver, NCCL 2.27 and the libraries behind torch say it.
LOST = (
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be "
    "asynchronously reported at some other API call",
    "CUDA error: unspecified launch failure",
    "CUDA error: device-side assert triggered",
    "CUDA error: misaligned address",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: the launch timed out and was terminated",
    "CUDA error: all CUDA-capable devices are busy or unavailable",
    "CUDA error: an illegal instruction was encountered",
    "CUDA error: unknown error",
    "Triton Error [CUDA]: an illegal memory access was encountered",
    "Triton Error [CUDA]: unspecified launch failure",
    "Triton Error [CUDA]: device-side assert triggered",
    "Triton Error [CUDA]: misaligned address",
    "Triton Error [CUDA]: context is destroyed",
    "Triton Error [CUDA]: unknown error",
    "Triton Error [HIP]:  Code: 700, Messsage: an illegal memory access was encountered",
    "CUDA driver error: an illegal memory access was encountered",
    "CUDA driver error: unknown error",
    "CUDA unknown error - this may be due to an incorrectly set up environment",
    "HIP error: an illegal memory access was encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb)`",
    "CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasSgemm( handle, opa, opb)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cublasLt ran into an error: CUBLAS_STATUS_EXECUTION_FAILED",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION",
    "cusolver error: CUSOLVER_STATUS_EXECUTION_FAILED, when calling `cusolverDnSpotrf`",
    "cudaErrorIllegalAddress: an illegal memory access was encountered",
    "cudaErrorLaunchFailure(719)",
    "call failed: CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure",
    "cuMemcpyHtoDAsync failed: an illegal memory access was encountered",
    "GPU is lost",
    "the GPU has fallen off the bus",
    "NCCL error in: ProcessGroupNCCL.cpp:2094, unhandled cuda error (run with NCCL_DEBUG=INFO)",
    "NCCL error in: NCCLUtils.cpp:77, unhandled cuda error\nncclUnhandledCudaError: Call to CUDA "
    "function failed.\nLast error:\nCuda failure 700 'an illegal memory access was encountered'",
    "ncclUnhandledCudaError: Call to CUDA function failed.\nCuda failure 2 'out of memory'",
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed",
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting",
    "ncclInternalError: Internal check failed.",
    "NCCL communicator was aborted on rank 1.",
    "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4, OpType=ALLREDUCE)",
)
SOUND = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cudaErrorMemoryAllocation: out of memory",
    "out of resource: shared memory, Required: 262144, Hardware limit: 232448.",
    "mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)",
    "Expected all tensors to be on the same device, but found two, cuda:0 and cpu!",
    "could not open the log file: input/output error",
    "index 5 is out of bounds for dimension 0 with size 4",
    "",
)


@pytest.mark.parametrize("words", LOST)
@pytest.mark.parametrize("kind", (RuntimeError, OSError, torch.AcceleratorError))
def test_a_lost_device_is_known_by_its_words(kind: type[Exception], words: str) -> None:
    error = kind(words, 1) if kind is torch.AcceleratorError else kind(words)
    assert Runner.is_fatal(error)


@pytest.mark.parametrize("words", SOUND)
def test_what_leaves_the_device_sound_is_not_fatal(words: str) -> None:
    assert not Runner.is_fatal(RuntimeError(words))


@pytest.mark.parametrize("error", (MemoryError(), KeyError(3), CapacityError("no memory left")))
def test_faults_of_the_host_are_not_fatal(error: Exception) -> None:
    assert not is_device_lost(error)


def test_kinds_count_as_well_as_words() -> None:
    assert is_device_lost(torch.AcceleratorError("something", 700))
    assert not is_device_lost(torch.AcceleratorError("CUDA error: out of memory", 2))
    assert not is_device_lost(torch.OutOfMemoryError("CUDA out of memory"))
    if torch.distributed.is_available():
        assert is_device_lost(torch.distributed.DistBackendError("something"))
        assert is_device_lost(torch.distributed.DistNetworkError("connection closed by peer"))


def from_it(lost: Exception) -> Exception:
    error = ValueError("the sampler failed")
    error.__cause__ = lost
    return error


def while_handling_it(lost: Exception) -> Exception:
    error = ValueError("the sampler failed")
    error.__context__ = from_it(lost)
    return error


def in_a_group(lost: Exception) -> Exception:
    return ExceptionGroup("several", [KeyError(1), while_handling_it(lost)])


def in_a_circle(lost: Exception) -> Exception:
    error = from_it(lost)
    lost.__context__ = error
    return error


@pytest.mark.parametrize("wrapped", (from_it, while_handling_it, in_a_group, in_a_circle))
def test_whatever_it_was_wrapped_in(wrapped: Callable[[Exception], Exception]) -> None:
    assert is_device_lost(wrapped(RuntimeError("Triton Error [CUDA]: unspecified launch failure")))
    assert not is_device_lost(wrapped(RuntimeError("Triton Error [CUDA]: out of memory")))
