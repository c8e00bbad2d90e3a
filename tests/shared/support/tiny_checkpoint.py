"""A checkpoint of a few kilobytes, and edits of what it holds."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from quire.engine.model.config import ModelConfig
from quire.engine.weights.checkpoint import SINGLE
from quire.engine.weights.random import save_random

CONFIG = ModelConfig(
    architecture="Qwen3ForCausalLM",
    vocab_size=96,
    hidden_size=32,
    num_layers=2,
    num_q_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    max_position_embeddings=64,
    rope_theta=1e4,
    stored_dtype="float32",
)
Change = Callable[[dict[str, Tensor]], object]


def write(directory: Path, edit: Change | None = None) -> None:
    """CONFIG's weights, fp32, always the same, in one file. edit: of its tensors, by name."""
    save_random(CONFIG, directory, seed=1)
    if edit is not None:
        change(directory, edit)


def change(directory: Path, edit: Change, file: str = SINGLE) -> None:
    """Write a file of weights again, with its tensors edited."""
    tensors = {name: tensor.clone() for name, tensor in load_file(directory / file).items()}
    edit(tensors)
    save_file(tensors, directory / file)
