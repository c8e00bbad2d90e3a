"""Everything that can change a token's last bits without changing the model, as one line of text.

Invariant: two engines with equal fingerprints and lines add the same numbers by the same programs
on the same class of hardware. The line is compared, never parsed.
"""

import importlib.metadata
import platform

import torch

from quire.kernels.cpu.ops import CpuOps
from quire.kernels.ops import Ops, is_exact

ORDER_OF_SUMS = 3  # in kernels on GPUs: count it up when one changes


def numerics(device: torch.device, ops: Ops, *, ranks: int) -> str:
    """ranks: how many devices share the model. For example `tp=1 cpu=x86_64/AVX512 threads=8
    products=avx512 torch=2.9.1`, or `tp=2 gpu=NVIDIA H200/sm_90 triton=3.5.1 tables=0a1b2c3d
    sums=3 exact=on torch=2.9.1`."""
    return " ".join((f"tp={ranks}", *_hardware(device, ops), f"torch={torch.__version__}"))


def _hardware(device: torch.device, ops: Ops) -> tuple[str, ...]:
    if device.type == "cpu":
        vectors = torch.backends.cpu.get_cpu_capability()
        products = ops.level if isinstance(ops, CpuOps) else "torch"
        threads = f"threads={torch.get_num_threads()}"
        return f"cpu={platform.machine()}/{vectors}", threads, f"products={products}"
    major, minor = torch.cuda.get_device_capability(device)
    card = f"gpu={torch.cuda.get_device_name(device)}/sm_{major}{minor}"
    from quire.kernels.linear import tuning

    mode = f"exact={'on' if is_exact(ops) else 'off'}"
    triton = f"triton={importlib.metadata.version('triton')}"
    return card, triton, f"tables={tuning.version()}", f"sums={ORDER_OF_SUMS}", mode
