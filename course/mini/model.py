"""A whole Qwen3: an embedding, layers, a norm, and a head.

Invariant: the model computes and does not remember. What earlier tokens left behind is kept by a
`Memory`, and each chapter hands it a better one; not a line in here changes for that.
"""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mini import weights as checkpoints
from mini.config import Config
from mini.layers import attention, rms_norm, rotary_table, rotate, swiglu
from mini.weights import Weights


class Memory(Protocol):
    """Where keys and values go, and what queries find there."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Take in the new tokens' keys and values, and let their queries look back.

        q: [T, Hq, D]; k, v: [T, Hkv, D], rotated -> [T, Hq, D].
        """


class NoMemory:
    """Nothing is kept: whoever wants the next token brings the whole text again."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        return attention(q, k, v)


class Model:
    """A checkpoint that can be asked what comes next."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = config
        self.weights = weights

    @staticmethod
    def read(directory: Path) -> "Model":
        """A model of its directory: config.json and *.safetensors."""
        return Model(Config.read(directory), checkpoints.read(directory))

    @torch.inference_mode()
    def logits(
        self, token_ids: list[int], positions: list[int], memory: Memory, rows: list[int]
    ) -> Tensor:
        """How likely each word of the vocabulary is behind the tokens of `rows`: [rows, vocab]."""
        x = self.hidden(token_ids, positions, memory, self.config.num_layers)[rows]
        x = rms_norm(x, self.weights["model.norm.weight"], self.config.rms_norm_eps)
        head = "model.embed_tokens.weight" if self.config.tied else "lm_head.weight"
        return x @ self.weights[head].T

    @torch.inference_mode()
    def hidden(
        self, token_ids: list[int], positions: list[int], memory: Memory, layers: int
    ) -> Tensor:
        """What the first `layers` layers have made of each token: [T, H]."""
        config = self.config
        cos, sin = rotary_table(torch.tensor(positions), config.head_dim, config.rope_theta)
        x = self.weights["model.embed_tokens.weight"][token_ids]
        for layer in range(layers):
            x = x + self._look_back(layer, x, cos, sin, memory)
            x = x + self._think(layer, x)
        return x

    def _look_back(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, memory: Memory) -> Tensor:
        """The first half of a layer: what this token takes from those before it. [T, H]."""
        config, name = self.config, f"model.layers.{layer}"
        x = rms_norm(x, self.weights[f"{name}.input_layernorm.weight"], config.rms_norm_eps)
        q = self._heads(f"{name}.self_attn", "q", x)
        k = self._heads(f"{name}.self_attn", "k", x)
        v = self._heads(f"{name}.self_attn", "v", x)
        found = memory.attend(layer, rotate(q, cos, sin), rotate(k, cos, sin), v)
        return found.flatten(1) @ self.weights[f"{name}.self_attn.o_proj.weight"].T

    def _heads(self, name: str, part: str, x: Tensor) -> Tensor:
        """Queries, keys or values: [T, heads, D]. Qwen3 norms each head of the first two."""
        config = self.config
        heads = (x @ self.weights[f"{name}.{part}_proj.weight"].T).unflatten(
            1, (-1, config.head_dim)
        )
        if part == "v":
            return heads
        return rms_norm(heads, self.weights[f"{name}.{part}_norm.weight"], config.rms_norm_eps)

    def _think(self, layer: int, x: Tensor) -> Tensor:
        """The second half of a layer: what this token makes of it, each for itself. [T, H]."""
        name = f"model.layers.{layer}"
        norm = self.weights[f"{name}.post_attention_layernorm.weight"]
        gate, up, down = (self.weights[f"{name}.mlp.{part}_proj.weight"] for part in PARTS)
        return swiglu(rms_norm(x, norm, self.config.rms_norm_eps), gate, up, down)


PARTS = ("gate", "up", "down")
