"""The numbers of a model: every tensor of its *.safetensors files, by name, in float32."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

Weights = dict[str, Tensor]


def read(directory: Path) -> Weights:
    """All tensors of a checkpoint. Raises FileNotFoundError if it holds none."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{directory}: no *.safetensors here")
    found: Weights = {}
    for file in files:
        found.update({name: tensor.float() for name, tensor in load_file(file).items()})
    return found
