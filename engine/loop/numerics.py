"""What can change a token's last bits although the same function is served, as one line of text.

Invariant: two engines whose fingerprints and lines are equal add the same numbers by the same
programs on the same class of hardware. The line is compared, never parsed.
"""

import importlib.metadata
import platform

import torch


def numerics(device: torch.device, *, ranks: int) -> str:
    """ranks: how many devices share the model. For example `tp=1 cpu=x86_64/AVX512 threads=8
    torch=2.9.1`, or `tp=2 gpu=NVIDIA H200/sm_90 torch=2.9.1 triton=3.5.1`."""
    return " ".join((f"tp={ranks}", *_hardware(device), f"torch={torch.__version__}"))


def _hardware(device: torch.device) -> tuple[str, ...]:
    if device.type == "cpu":
        vectors = torch.backends.cpu.get_cpu_capability()
        return f"cpu={platform.machine()}/{vectors}", f"threads={torch.get_num_threads()}"
    major, minor = torch.cuda.get_device_capability(device)
    card = f"gpu={torch.cuda.get_device_name(device)}/sm_{major}{minor}"
    return card, f"triton={importlib.metadata.version('triton')}"
