"""Small random checkpoints of each family, written by transformers itself."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

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
    layers: int = 4
    rope: dict[str, Any] = field(default_factory=dict)
    family: type[PreTrainedConfig] = Qwen3Config
    more: dict[str, Any] = field(default_factory=dict)  # of the family's configuration


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


def _llama3(factor: float, low: float, high: float) -> dict[str, Any]:
    """Scaling of an original length that heads of 16 to 128 dimensions have all kinds of
    frequencies over."""
    return {
        "rope_type": "llama3",
        "factor": factor,
        "original_max_position_embeddings": 64,
        "low_freq_factor": low,
        "high_freq_factor": high,
    }


def _of(family: type[PreTrainedConfig], *shapes: Shape) -> list[Shape]:
    """Shapes of a family beside Qwen3, smaller than those."""
    return [replace(shape, family=family, layers=2) for shape in shapes]


LLAMA_SHAPES = _of(
    LlamaConfig,
    Shape("llama 3.1, groups, bf16", 4, 2, 32, False, torch.bfloat16, rope=_llama3(8.0, 1, 4)),
    Shape("llama 2, no groups, fp32", 4, 4, 16, False, torch.float32),
    Shape("llama 3.2, tied, fp32", 8, 2, 64, True, torch.float32, rope=_llama3(32.0, 1, 4)),
    Shape("llama, groups of 8, tied", 8, 1, 16, True, torch.float32, hidden=192),
    Shape("llama, narrow ramp", 4, 2, 128, False, torch.bfloat16, rope=_llama3(2.0, 1.5, 2)),
    Shape("llama, yarn", 6, 2, 80, False, torch.bfloat16, 192, rope=_yarn(4.0)),
)
QWEN2_SHAPES = _of(
    Qwen2Config,
    Shape("qwen2, groups of 7, tied, bf16", 7, 1, 16, True, torch.bfloat16, 112, seed=4),
    Shape("qwen2, untied, fp32", 4, 2, 32, False, torch.float32),
    Shape("qwen2, no groups, tied", 4, 4, 32, True, torch.float32),
    Shape("qwen2, groups of 8", 8, 1, 16, False, torch.bfloat16),
    Shape("qwen2, yarn", 4, 2, 32, False, torch.float32, rope=_yarn(4.0)),
    Shape("qwen2, uneven heads", 6, 2, 32, False, torch.float32, hidden=192),
)


_PAD = {"pad_token_id": 0}  # of Phi-3 it is beyond a small vocabulary
PHI3_SHAPES = _of(
    Phi3Config,
    Shape("phi3, groups, bf16", 4, 2, 32, False, torch.bfloat16, seed=4, more=_PAD),
    Shape("phi3, tied, window", 4, 4, 32, True, torch.float32, more=_PAD | {"sliding_window": 21}),
    Shape("phi3, groups of 8", 8, 1, 16, False, torch.float32, more=_PAD),
)
RAW = {"norm_topk_prob": False}


def _experts(count: int, per_token: int, **more: Any) -> dict[str, Any]:
    more = {"norm_topk_prob": True, "moe_intermediate_size": 96, **more}
    return {"num_experts": count, "num_experts_per_tok": per_token, **more}


def _moe(name: str, more: dict[str, Any], **shape: Any) -> Shape:
    return Shape(name, 4, 2, 32, False, torch.float32, more=more, **shape)


MOE_SHAPES = _of(
    Qwen3MoeConfig,
    _moe("moe, 4 of 8", _experts(8, 4)),
    _moe(
        "moe, not renormalised, a dense layer",
        _experts(6, 2, **RAW, mlp_only_layers=[0]),
    ),
    _moe("moe, every second layer", _experts(4, 2, decoder_sparse_step=2)),
    _moe("moe, all of few", _experts(3, 3), seed=4),
    _moe("moe, one of many", _experts(16, 1)),
    _moe("moe, yarn", _experts(8, 3, moe_intermediate_size=40), seed=4, rope=_yarn(4.0)),
)


def _window(tokens: int) -> dict[str, Any]:
    return {"sliding_window": tokens}


_QWEN2_WINDOW = {"use_sliding_window": True, "max_window_layers": 0}
WINDOW_SHAPES = _of(
    MistralConfig,
    Shape("mistral, groups, window of 16", 4, 2, 32, False, torch.float32, more=_window(16)),
    Shape("mistral, tied, odd window", 8, 2, 64, True, torch.bfloat16, more=_window(7)),
    Shape("mistral, window of one block", 4, 4, 16, False, torch.float32, more=_window(33)),
    Shape("mistral, yarn", 4, 2, 32, False, torch.float32, more=_window(20), rope=_yarn(4.0)),
    Shape("mistral, no window", 8, 1, 16, False, torch.bfloat16, more={"sliding_window": None}),
) + _of(
    Qwen2Config,
    Shape("qwen2, window", 4, 2, 32, False, torch.float32, more=_QWEN2_WINDOW | _window(12)),
)


def _both(tokens: int, **more: Any) -> dict[str, Any]:
    """Some layers see all, some a window."""
    return {"use_sliding_window": True, "sliding_window": tokens, **more}


_ALTERNATING = [f"{kind}_attention" for kind in ("sliding", "full", "full", "sliding")]
_HALF = {"max_window_layers": 2}
TWO_KIND_SHAPES = [
    replace(shape, family=Qwen2Config)
    for shape in (
        Shape("both, a short window", 4, 2, 32, False, torch.float32, more=_both(12, **_HALF)),
        Shape("both, mixed, the prompt's length", 4, 4, 32, True, torch.bfloat16,
              more=_both(37, layer_types=_ALTERNATING)),
        Shape("both, longer than the prompt", 8, 2, 16, False, torch.float32,
              more=_both(53, max_window_layers=3)),
        # transformers forgets no key of a window of one token where it caches: not compared.
        Shape("both, two tokens", 6, 2, 32, False, torch.float32, 192,
              more=_both(2, max_window_layers=1), seed=4),
        Shape("both, blocks, yarn", 4, 2, 32, False, torch.float32, rope=_yarn(4.0),
              more=_both(32, layer_types=_ALTERNATING)),
    )
]  # fmt: skip


def _gpt2(name: str, heads: int, head_dim: int, stored: torch.dtype, **more: Any) -> Shape:
    """A shape of GPT-2, tied unless it is said otherwise. more: of its configuration."""
    tied, seed = more.pop("tie_word_embeddings", True), more.pop("seed", 5)
    hidden = heads * head_dim
    return Shape(name, heads, heads, head_dim, tied, stored, hidden, seed, layers=3, more=more)


GPT2_SHAPES = [
    replace(shape, family=GPT2Config)
    for shape in (
        _gpt2("gpt2, heads of 64, fp32", 2, 64, torch.float32),
        _gpt2("gpt2, untied, narrow inside, bf16", 5, 32, torch.bfloat16,
              tie_word_embeddings=False, n_inner=200),
        _gpt2("gpt2, few positions", 9, 16, torch.float32, n_positions=101, seed=4),
        _gpt2("gpt2, uneven heads, wide inside", 3, 80, torch.float32, n_inner=1100),
        _gpt2("gpt2, one head, large epsilon", 1, 160, torch.float32, layer_norm_epsilon=1e-2),
        _gpt2("gpt2, the other name of GELU, bf16", 4, 32, torch.bfloat16,
              activation_function="gelu_pytorch_tanh"),
    )
]  # fmt: skip

# Of each family two shapes are compared in every run and the others in the long one; of Qwen3 all.
OTHERS = (
    LLAMA_SHAPES,
    QWEN2_SHAPES,
    PHI3_SHAPES,
    MOE_SHAPES,
    WINDOW_SHAPES,
    TWO_KIND_SHAPES,
    GPT2_SHAPES,
)


def _gpt2_config(shape: Shape) -> PreTrainedConfig:
    return GPT2Config(
        **{"n_positions": POSITIONS, **shape.more},
        vocab_size=VOCAB,
        n_embd=shape.hidden,
        n_layer=shape.layers,
        n_head=shape.q_heads,
        tie_word_embeddings=shape.tied,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=None,
    )


def hf_config(shape: Shape) -> PreTrainedConfig:
    if shape.family is GPT2Config:
        return _gpt2_config(shape)
    return shape.family(
        vocab_size=VOCAB,
        hidden_size=shape.hidden,
        intermediate_size=4 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.q_heads,
        num_key_value_heads=shape.kv_heads,
        **({} if shape.family is Qwen2Config else {"head_dim": shape.head_dim}),
        max_position_embeddings=POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0} | shape.rope,
        tie_word_embeddings=shape.tied,
        initializer_range=0.1,
        eos_token_id=None,
        **shape.more,
    )


def save(shape: Shape, directory: Path, **options: Any) -> None:
    """Write a checkpoint; norms and biases are random too. options: of save_pretrained."""
    torch.manual_seed(shape.seed)
    model = AutoModelForCausalLM.from_config(hf_config(shape))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if shape.family is GPT2Config:
                _vary(name, weight)
            elif name.endswith("bias"):
                weight.uniform_(-0.5, 0.5)
            elif "norm" in name:
                weight.uniform_(0.5, 1.5)
    model.to(shape.stored).save_pretrained(directory, **options)


def _vary(name: str, weight: Tensor) -> None:
    """Make a weight of GPT-2 such that its tokens vary: what is the same at every place, its many
    biases, is small beside what is not."""
    if name.endswith("bias"):
        weight.uniform_(-0.1, 0.1)
    elif "ln_" in name:
        weight.uniform_(0.5, 1.5)
    elif "wpe" in name or "c_proj" in name:
        weight.mul_(4)


def load(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
