"""Small random Qwen3 checkpoints, written by transformers itself."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

POSITIONS, VOCAB = 512, 2048


@dataclass(frozen=True)
class Shape:
    """What differs between the models."""

    name: str
    q_heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    stored: torch.dtype
    hidden: int = 128
    seed: int = 3
    rope: dict[str, Any] = field(default_factory=dict)


def _yarn(factor: float, **more: Any) -> dict[str, Any]:
    original = int(POSITIONS / factor)
    more = {"original_max_position_embeddings": original, **more}
    return {"rope_type": "yarn", "factor": factor, **more}


SHAPES = [
    Shape("no groups, tied, fp32", 4, 4, 16, True, torch.float32),
    Shape("groups of 2, untied, bf16", 4, 2, 32, False, torch.bfloat16),
    Shape("groups of 4, tied, bf16", 8, 2, 64, True, torch.bfloat16),
    Shape("groups of 8, untied, fp32", 8, 1, 16, False, torch.float32, hidden=192),
    Shape("wide heads, yarn, tied, fp32", 4, 2, 128, True, torch.float32, rope=_yarn(4.0)),
    Shape(
        "uneven heads, yarn with all its options, untied, bf16",
        *(6, 2, 80, False, torch.bfloat16),
        rope=_yarn(
            8.0, beta_fast=16.0, beta_slow=2.0, mscale=0.9, mscale_all_dim=0.4, truncate=False
        ),
    ),
]


def hf_config(shape: Shape) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=shape.hidden,
        intermediate_size=4 * shape.hidden,
        num_hidden_layers=4,
        num_attention_heads=shape.q_heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0} | shape.rope,
        tie_word_embeddings=shape.tied,
        initializer_range=0.1,
        eos_token_id=None,
    )


def save(shape: Shape, directory: Path, **options: Any) -> None:
    """Write a checkpoint; norm weights are random too. options: of save_pretrained."""
    torch.manual_seed(shape.seed)
    model = Qwen3ForCausalLM(hf_config(shape))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    model.to(shape.stored).save_pretrained(directory, **options)


def load(directory: Path, dtype: torch.dtype) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(directory, dtype=dtype).eval()
