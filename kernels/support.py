"""What the attention kernels can do, said before a model is loaded.

Invariant: a configuration that `check_supported` lets through runs; any other is refused by name.
"""

import torch

HEAD_DIMS = (16, 32, 64, 96, 128, 256)
BLOCK_SIZES = (16, 32, 64, 128, 256)
MAX_GROUP = 16  # query heads that share a kv head
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_supported(head_dim: int, dtype: torch.dtype, block_size: int, group: int) -> None:
    """Raise ValueError, naming the field, its value and what is supported.

    head_dim: elements a head; dtype: of activations and cache; block_size: tokens a block;
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


def before_hopper(device: torch.device) -> bool:
    """Whether a GPU is older than sm_90: no dependent launch, no copies of tiles by descriptor."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < (9, 0)


def _listed(values: tuple[object, ...]) -> str:
    return ", ".join(str(value) for value in values)
