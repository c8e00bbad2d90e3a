"""Rotary tables against transformers' own, YaRN with every option and Llama 3's included."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from quire.engine.model.config import ModelConfig
from quire.engine.model.layers.rotary import cos_sin_table, inverse_frequencies
from quire.engine.weights.random import hf_config

YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0}
YARN["original_max_position_embeddings"] = 32_768
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "yarn": YARN,
    "betas": YARN | {"beta_fast": 20.0, "beta_slow": 3.0},
    "attention factor": YARN | {"attention_factor": 0.7},
    "both mscales": YARN | {"mscale": 0.707, "mscale_all_dim": 1.2},
    "one mscale": YARN | {"mscale": 0.707},
    "not truncated": YARN | {"truncate": False},
    "no stretch": YARN | {"factor": 1.0},
    "ramp of no width": YARN | {"beta_fast": 1.0, "beta_slow": 1.0, "truncate": False},
    "llama3": LLAMA3 | {"factor": 8.0},
    "llama3, far apart": LLAMA3 | {"factor": 32.0, "high_freq_factor": 40.0},
    "llama3, a step": LLAMA3 | {"factor": 2.0, "high_freq_factor": 1.001},
    "original from the model's length": {"rope_type": "yarn", "factor": 2.0},
}


def both(tmp_path: Path, rope: dict[str, Any], theta: float, dim: int) -> tuple[Any, ModelConfig]:
    """The same configuration for transformers and for us, ours read from a file."""
    rope = {"rope_theta": theta, **rope}
    data = hf_config(ModelConfig.named_shape("tiny"), torch.float32)
    data |= {"head_dim": dim, "max_position_embeddings": 131_072, "rope_parameters": rope}
    (tmp_path / "config.json").write_text(json.dumps(data))
    return Qwen3Config(**data), ModelConfig.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        pytest.param(name, dim, marks=pytest.mark.long if (at + place) % 2 else ())
        for at, name in enumerate(ROPES)
        for place, dim in enumerate((16, 80, 128))
    ],
)
def test_table_is_that_of_transformers(name: str, dim: int, tmp_path: Path) -> None:
    theirs, ours = both(tmp_path, ROPES[name], 1e6, dim)
    positions = torch.tensor([0, 1, 17, 4095, 32_767, 32_768, 131_071])
    expected = Qwen3RotaryEmbedding(theirs)(torch.zeros(1), positions[None])
    half = dim // 2
    table = cos_sin_table(dim, 131_072, ours.rope_theta, ours.rope_scaling, torch.device("cpu"))
    assert table.shape == (131_072, dim) and table.dtype == torch.float32
    assert torch.allclose(table[positions, :half], expected[0][0, :, :half], atol=1e-6)
    assert torch.allclose(table[positions, half:], expected[1][0, :, :half], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in ROPES if name != "default"])
def test_scaled_frequencies_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs, ours = both(tmp_path, ROPES[name], 10_000.0, 64)
    kind = ROPES[name]["rope_type"]
    expected, factor = ROPE_INIT_FUNCTIONS[kind](theirs, torch.device("cpu"))
    assert ours.rope_scaling is not None
    mine = inverse_frequencies(64, ours.rope_theta, ours.rope_scaling)
    assert torch.allclose(mine, expected, rtol=1e-6)
    assert getattr(ours.rope_scaling, "attention_factor", 1.0) == pytest.approx(factor)
    plain = inverse_frequencies(64, ours.rope_theta, None)
    assert torch.equal(mine, plain) == (ours.rope_scaling.factor == 1.0)
