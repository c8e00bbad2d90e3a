"""What a model is: eleven numbers from its config.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What would change the function that the model computes, and is not built here.
_MUST_BE = {"model_type": "qwen3", "attention_bias": False, "use_sliding_window": False}


@dataclass(frozen=True)
class Config:
    """The shape of a Qwen3. head_dim is a size of its own: it need not be hidden / heads."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    tied: bool  # whether the head is the embedding, read the other way round
    eos_token_ids: frozenset[int]

    @staticmethod
    def read(directory: Path) -> "Config":
        """Read config.json. Raises ValueError for what this engine would compute wrongly."""
        raw = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        for field, wanted in _MUST_BE.items():
            if raw.get(field, wanted) != wanted:
                raise ValueError(f"{field} = {raw[field]!r}: this engine knows {wanted!r} alone")
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        kind = rope.get("rope_type", "default")
        if kind != "default":
            raise ValueError(f"rope_type = {kind!r}: this engine knows 'default' alone")
        return Config(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_q_heads=raw["num_attention_heads"],
            num_kv_heads=raw["num_key_value_heads"],
            head_dim=raw["head_dim"],
            rms_norm_eps=raw["rms_norm_eps"],
            rope_theta=rope.get("rope_theta") or raw["rope_theta"],
            tied=raw.get("tie_word_embeddings", False),
            eos_token_ids=_ids(raw.get("eos_token_id")),
        )

    @property
    def kv_bytes_per_token(self) -> int:
        """What a token costs to remember: a key and a value a head and layer, 4 bytes a number."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * 4


def _ids(value: Any) -> frozenset[int]:
    """config.json writes no end token, one, or a list."""
    if value is None:
        return frozenset()
    return frozenset(value if isinstance(value, list) else [value])
