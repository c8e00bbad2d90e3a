"""What the kernels support, checked before a model is loaded, and the properties of a GPU.

Invariant: a configuration that passes `check_supported` runs on a GPU that passes `check_device`;
any other is refused by name.
"""

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import cache

import torch

from quire.kernels.cards import KNOWN

HEAD_DIMS = (16, 32, 64, 96, 128, 256)
BLOCK_SIZES = (16, 32, 64, 128, 256)
MAX_GROUP = 16  # query heads that share a kv head
MAX_EXPERTS = 1024
MAX_EXPERTS_A_TOKEN = 32
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NARROW = torch.float8_e4m3fn  # the dtype of a cache that is not the activations'
HOPPER_SHARED = KNOWN["h200"].shared  # bytes of shared memory that a program may have on sm_90
HOPPER_MULTIPROCESSORS = 132  # of an H100 or an H200
HOPPER_TRITON = ("3.6.0", "3.7.1")  # whose Gluon, no stable interface, our kernels are for
HOME_CARD = KNOWN["h200"].name  # for which the kernels were tuned first


def check_supported(head_dim: int, dtype: torch.dtype, block_size: int, group: int) -> None:
    """Raise ValueError, naming the field, its value and what is supported.

    head_dim: elements a head; dtype: of activations; block_size: tokens a block;
    group: query heads a kv head.
    """
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"head_dim {head_dim} is not supported: one of {_listed(HEAD_DIMS)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype} is not supported: one of {_listed(DTYPES)}")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size {block_size} is not supported: one of {_listed(BLOCK_SIZES)}")
    if not 1 <= group <= MAX_GROUP:
        raise ValueError(f"{group} query heads a kv head are not supported: 1 to {MAX_GROUP}")


def check_cache(dtype: torch.dtype, cache: torch.dtype) -> None:
    """Raise ValueError for a cache whose dtype is neither the activations' nor e4m3."""
    if cache not in (dtype, NARROW):
        raise ValueError(f"a cache of {cache} is not supported: {dtype} or {NARROW}")


def check_mixture(count: int, per_token: int) -> None:
    """Raise ValueError for more experts, or more of them a token, than the kernels take."""
    for name, value, most in (
        ("num_experts", count, MAX_EXPERTS),
        ("num_experts_per_tok", per_token, MAX_EXPERTS_A_TOKEN),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"{name} {value} is not supported: 1 to {most}")


def check_device(device: torch.device) -> None:
    """Raise ValueError for a GPU older than sm_80, which lacks what the kernels are made of."""
    if device.type != "cpu" and capability(device) < (8, 0):
        raise ValueError(f"{_introduced(device)}: 8.0 or newer is needed")


def check_fp8(device: torch.device) -> None:
    """Raise ValueError for a GPU older than sm_89, which cannot compute with FP8 weights."""
    _check_e4m3(device, "FP8 weights need")


def check_fp8_cache(device: torch.device) -> None:
    """Raise ValueError for a GPU older than sm_89, which cannot round keys and values to e4m3."""
    _check_e4m3(device, "a cache of FP8 needs")


def _check_e4m3(device: torch.device, needs: str) -> None:
    if device.type != "cpu" and not knows_e4m3(device):
        raise ValueError(f"{_introduced(device)}: {needs} 8.9 or newer")


def _introduced(device: torch.device) -> str:
    found = ".".join(map(str, capability(device)))
    return f"{_name(device)} has compute capability {found}"


@dataclass
class _Assumed:
    """What meta tensors are taken to be on: an H200, unless `assume` says otherwise."""

    capability: tuple[int, int] = (9, 0)
    shared: int = HOPPER_SHARED
    name: str = HOME_CARD


_assumed = _Assumed()


def assume(capability: tuple[int, int], shared: int, name: str) -> None:
    """Take tensors that are on no GPU to be on this one. shared: as of `shared_bytes`."""
    _assumed.capability, _assumed.shared, _assumed.name = capability, shared, name
    for told in (before_hopper, is_hopper, knows_e4m3, shared_bytes, multiprocessors, card_name):
        told.cache_clear()


@contextmanager
def assumed(capability: tuple[int, int], shared: int, name: str) -> Iterator[None]:
    """Within, tensors that are on no GPU are taken to be on this one (see `assume`)."""
    before = astuple(_assumed)
    assume(capability, shared, name)
    try:
        yield
    finally:
        assume(*before)


def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a tensor's device; off a GPU what is assumed."""
    return _capability(device) if device.type == "cuda" else _assumed.capability


@cache
def before_hopper(device: torch.device) -> bool:
    """Whether a GPU is older than sm_90: no dependent launch, no copies of tiles by descriptor."""
    return capability(device) < (9, 0)


@cache
def is_hopper(device: torch.device) -> bool:
    """Whether a GPU is sm_90, whose matrix instructions no other generation has."""
    return capability(device) == (9, 0)


def can_chain(device: torch.device) -> bool:
    """Whether kernels can be launched as dependents: Hopper and newer, triton 3.5 and newer."""
    if device.type == "cpu" or before_hopper(device):
        return False
    major, minor = importlib.metadata.version("triton").split(".")[:2]
    return (int(major), int(minor)) >= (3, 5)


def has_gluon(device: torch.device, versions: tuple[str, ...] = HOPPER_TRITON) -> bool:
    """Whether kernels in Gluon for sm_90 run on a tensor's device, by this version of Triton.
    versions: those that a kernel is for."""
    if device.type == "cpu" or not is_hopper(device):
        return False
    import triton  # not there on a machine without a GPU, maybe

    return triton.__version__ in versions


@cache
def knows_e4m3(device: torch.device) -> bool:
    """Whether a GPU has instructions for e4m3, as FP8 weights and caches need them: sm_89."""
    return capability(device) >= (8, 9)


@cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory that a program may have on a tensor's device; off a GPU what is assumed."""
    if device.type != "cuda":
        return _assumed.shared
    told = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", None)
    if told is not None:  # Triton first builds what it asks the driver with, in C
        return int(told)
    from triton.runtime.driver import driver  # not there on a machine without a GPU, maybe

    return int(driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


@cache
def multiprocessors(device: torch.device) -> int:
    """How many a tensor's GPU has; off a GPU as many as an H200."""
    if device.type != "cuda":
        return HOPPER_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def card_name(device: torch.device) -> str:
    """The name of a tensor's GPU; off a GPU of the one that is assumed."""
    return _name(device)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _assumed.name


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _listed(values: tuple[object, ...]) -> str:
    return ", ".join(str(value) for value in values)
