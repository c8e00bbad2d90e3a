"""Shapes by name, for random weights: published models, and small ones for tests and benchmarks."""

from dataclasses import replace

from quire.engine.errors import ConfigError
from quire.engine.model.config import (
    GPT2,
    LLAMA,
    PHI3,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    Experts,
    Fp8,
    GenerationDefaults,
    Llama3Scaling,
    ModelConfig,
)

_FP8 = "-fp8"


def named(name: str) -> ModelConfig:
    """A shape by name; NAME-fp8 is the same with FP8 weights. Raises ConfigError for an unknown
    one."""
    base = name.removesuffix(_FP8)
    if base not in _NAMED_SHAPES:
        known = ", ".join(_NAMED_SHAPES)
        others = f"and each but GPT-2's with {_FP8}"
        raise ConfigError(f"shape {name!r}: unknown; known: {known}, {others}")
    shape = _NAMED_SHAPES[base]
    return shape if base == name else in_fp8(shape)


def in_fp8(shape: ModelConfig) -> ModelConfig:
    """The same model with FP8 weights, converted while it is loaded."""
    return shape if shape.fp8 is not None else replace(shape, fp8=Fp8(made_on_load=True))


def _qwen3(hidden: int, layers: int, q_heads: int, intermediate: int, *, tied: bool) -> ModelConfig:
    """A published Qwen3: https://huggingface.co/Qwen."""
    return ModelConfig(
        architecture=QWEN3,
        vocab_size=151_936,
        hidden_size=hidden,
        num_layers=layers,
        num_q_heads=q_heads,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=intermediate,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        max_position_embeddings=40_960,
        rope_theta=1e6,
        eos_token_ids=(151_645, 151_643),
        generation=GenerationDefaults(temperature=0.6, top_p=0.95, top_k=20),
    )


def _small(hidden: int, layers: int, q_heads: int, vocab: int, spread: float) -> ModelConfig:
    """A shape for tests and for benchmarks on a CPU. Its text means nothing, so nothing ends it."""
    return ModelConfig(
        architecture=QWEN3,
        vocab_size=vocab,
        hidden_size=hidden,
        num_layers=layers,
        num_q_heads=q_heads,
        num_kv_heads=q_heads // 2,
        head_dim=hidden // q_heads,
        intermediate_size=3 * hidden,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        max_position_embeddings=4096,
        rope_theta=1e6,
        initializer_range=spread,
    )


def _qwen3_moe(hidden: int, layers: int, heads: tuple[int, int], expert: int) -> ModelConfig:
    """A published Qwen3-MoE: 128 experts, 8 a token. heads: of queries, of keys and values."""
    return ModelConfig(
        architecture=QWEN3_MOE,
        vocab_size=151_936,
        hidden_size=hidden,
        num_layers=layers,
        num_q_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=128,
        intermediate_size=3 * hidden,  # of dense layers; there are none
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        max_position_embeddings=40_960,
        rope_theta=1e6,
        eos_token_ids=(151_645, 151_643),
        generation=GenerationDefaults(temperature=0.6, top_p=0.95, top_k=20),
        experts=Experts(128, 8, expert, norm_topk_prob=True),
    )


def _qwen2(
    hidden: int, layers: int, heads: tuple[int, int], intermediate: int, *, tied: bool = False
) -> ModelConfig:
    """A published Qwen2.5-Instruct. heads: of queries, of keys and values."""
    return ModelConfig(
        architecture=QWEN2,
        vocab_size=151_936 if hidden < 3000 else 152_064,
        hidden_size=hidden,
        num_layers=layers,
        num_q_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=hidden // heads[0],
        intermediate_size=intermediate,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        max_position_embeddings=32_768,
        rope_theta=1e6,
        eos_token_ids=(151_645, 151_643),
        generation=GenerationDefaults(0.7, 0.8, 20, repetition_penalty=1.05),
    )


def _llama3(
    hidden: int, layers: int, q_heads: int, intermediate: int, *, factor: float, tied: bool
) -> ModelConfig:
    """A published Llama-3.1 or Llama-3.2-Instruct."""
    return ModelConfig(
        architecture=LLAMA,
        vocab_size=128_256,
        hidden_size=hidden,
        num_layers=layers,
        num_q_heads=q_heads,
        num_kv_heads=8,
        head_dim=hidden // q_heads,
        intermediate_size=intermediate,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        max_position_embeddings=131_072,
        rope_theta=5e5,
        rope_scaling=Llama3Scaling(factor, 8192, 1.0, 4.0),
        eos_token_ids=(128_001, 128_008, 128_009),
        generation=GenerationDefaults(temperature=0.6, top_p=0.9),
    )


def _gpt2(hidden: int, layers: int, heads: int) -> ModelConfig:
    """A published GPT-2."""
    return ModelConfig(
        architecture=GPT2,
        vocab_size=50_257,
        hidden_size=hidden,
        num_layers=layers,
        num_q_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=4 * hidden,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        rope_theta=0.0,
        stored_dtype="float32",
        eos_token_ids=(50_256,),
    )


_PHI4 = ModelConfig(  # as published
    architecture=PHI3,
    vocab_size=100_352,
    hidden_size=5120,
    num_layers=40,
    num_q_heads=40,
    num_kv_heads=10,
    head_dim=128,
    intermediate_size=17_920,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    max_position_embeddings=16_384,
    rope_theta=250_000.0,
    eos_token_ids=(100_265,),
)


_NAMED_SHAPES = {
    "0.6B": _qwen3(1024, 28, 16, 3072, tied=True),
    "1.7B": _qwen3(2048, 28, 16, 6144, tied=True),
    "4B": _qwen3(2560, 36, 32, 9728, tied=True),
    "8B": _qwen3(4096, 36, 32, 12_288, tied=False),
    "14B": _qwen3(5120, 40, 40, 17_408, tied=False),
    "32B": _qwen3(5120, 64, 64, 25_600, tied=False),
    "72B": _qwen3(8192, 80, 64, 29_568, tied=False),  # Qwen2.5's size in Qwen3's layout
    "30B-A3B": _qwen3_moe(2048, 48, (32, 4), 768),
    "235B-A22B": _qwen3_moe(4096, 94, (64, 4), 1536),
    "qwen2.5-0.5B": _qwen2(896, 24, (14, 2), 4864, tied=True),
    "qwen2.5-7B": _qwen2(3584, 28, (28, 4), 18_944),
    "llama3.2-1B": _llama3(2048, 16, 32, 8192, factor=32.0, tied=True),
    "llama3.1-8B": _llama3(4096, 32, 32, 14_336, factor=8.0, tied=False),
    "phi4": _PHI4,
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    # Narrow layers need a wider spread: their outputs would not move the residual otherwise.
    "tiny": _small(128, 4, 4, 4096, 0.1),
    "bench": _small(512, 8, 8, 32_768, 0.05),
}
