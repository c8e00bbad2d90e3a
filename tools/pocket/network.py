"""Qwen3 for training, in plain PyTorch.

Invariant: parameter names, shapes and arithmetic are those of Hugging Face's Qwen3ForCausalLM with
a tied head, so that the state dict is the checkpoint. Weights are fp32 masters; activations have
the dtype asked for at construction.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 2048
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6

    def hugging_face(self, im_end: int, end_of_text: int) -> dict[str, Any]:
        """The content of config.json, readable by transformers 4 and 5."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **asdict(self),
            "rope_scaling": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "eos_token_id": im_end,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "pad_token_id": end_of_text,
            "tie_word_embeddings": True,
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
        }


class Norm(nn.Module):
    """RMSNorm over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


class Linear(nn.Linear):
    """A bias-free linear whose fp32 weight follows the dtype of its input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def rotary(length: int, shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos, sin: fp32 [length, head_dim]."""
    half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32, device=device)
    inverse = shape.rope_theta ** (-half / shape.head_dim)
    angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] * inverse
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [rows, heads, length, head_dim], rotated by position."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


class Attention(nn.Module):
    """Grouped-head causal attention with q/k norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads = shape.num_attention_heads, shape.num_key_value_heads
        self.head_dim = shape.head_dim
        self.q_proj = Linear(shape.hidden_size, self.heads * self.head_dim)
        self.k_proj = Linear(shape.hidden_size, self.kv_heads * self.head_dim)
        self.v_proj = Linear(shape.hidden_size, self.kv_heads * self.head_dim)
        self.o_proj = Linear(self.heads * self.head_dim, shape.hidden_size)
        self.q_norm = Norm(self.head_dim, shape.rms_norm_eps)
        self.k_norm = Norm(self.head_dim, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(rows, length, self.heads, self.head_dim))
        k = self.k_norm(self.k_proj(x).view(rows, length, self.kv_heads, self.head_dim))
        v = self.v_proj(x).view(rows, length, self.kv_heads, self.head_dim)
        q, k = rotate(q.transpose(1, 2), cos, sin), rotate(k.transpose(1, 2), cos, sin)
        group = self.heads // self.kv_heads
        k = k.repeat_interleave(group, 1)
        v = v.transpose(1, 2).repeat_interleave(group, 1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = Linear(shape.hidden_size, shape.intermediate_size)
        self.up_proj = Linear(shape.hidden_size, shape.intermediate_size)
        self.down_proj = Linear(shape.intermediate_size, shape.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Embedding, layers and final norm, under the names that the checkpoint uses."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)


class Pocket(nn.Module):
    """The language model; the head is the embedding."""

    def __init__(self, shape: Shape, compute: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape, self.compute = shape, compute
        self.model = Trunk(shape)
        self._initialise()

    def _initialise(self) -> None:
        for name, weight in self.named_parameters():
            if "embed" in name:
                nn.init.normal_(weight, std=0.02)
            elif weight.dim() == 2:
                # Each residual branch starts as nothing.
                silent = "o_proj" in name or "down_proj" in name
                nn.init.normal_(weight, std=0.0 if silent else weight.shape[1] ** -0.5)

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [rows, length] → [rows, length, hidden_size]."""
        cos, sin = rotary(tokens.shape[1], self.shape, tokens.device)
        cos, sin = cos.to(self.compute), sin.to(self.compute)
        x = self.model.embed_tokens(tokens).to(self.compute)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [n, hidden_size] → fp32 [n, vocab_size]."""
        return F.linear(hidden, self.model.embed_tokens.weight.to(hidden.dtype)).float()

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy at the flat positions `targets` (int64 [n]) of their next tokens."""
        hidden = self.hidden(tokens).flatten(0, 1).index_select(0, targets)
        return F.cross_entropy(self.logits(hidden), tokens.flatten().index_select(0, targets + 1))
