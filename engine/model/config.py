"""What a model is: shape, position encoding, end tokens and its own sampling defaults.

Invariant: a ModelConfig that exists describes a model that Quire computes in full. What a
checkpoint asks for and Quire does not do (a sliding window, another activation, quantized
weights, ...) is refused when its files are read, never left out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from quire.engine.errors import ConfigError

if TYPE_CHECKING:
    import torch

QWEN3 = "Qwen3ForCausalLM"


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling parameters that the model's authors recommend; None where they say nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """YaRN (Peng et al., 2023): rotary positions stretched by `factor` beyond their training.

    original_max_position_embeddings: positions in training. beta_fast, beta_slow: rotations over
    that length above which a frequency stays, and below which it is stretched by the whole factor.
    attention_factor: what cosines and sines are scaled by. truncate: whether the ramp's ends are
    rounded outwards to whole dimensions.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only model. Attention has no biases and no window; the activation is SwiGLU.

    max_position_embeddings: most positions, YaRN's stretch included. stored_dtype: "float32",
    "bfloat16" or "float16". eos_token_ids: union of config.json and generation_config.json.
    initializer_range: standard deviation of random matrices.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    stored_dtype: str = "bfloat16"
    eos_token_ids: tuple[int, ...] = ()
    generation: GenerationDefaults = GenerationDefaults()
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.num_q_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_attention_heads = {self.num_q_heads}: must be a multiple of "
                f"num_key_value_heads = {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim = {self.head_dim}: must be even")

    @staticmethod
    def from_directory(path: Path) -> "ModelConfig":
        """Read config.json and generation_config.json. Raises ConfigError, naming file and key."""
        from quire.engine.model.hf_config import read_directory

        return read_directory(path)

    @staticmethod
    def named_shape(name: str) -> "ModelConfig":
        """A shape by name, for random weights. Raises ConfigError for an unknown name."""
        if name not in _NAMED_SHAPES:
            raise ConfigError(f"shape {name!r}: unknown; known: {', '.join(_NAMED_SHAPES)}")
        return _NAMED_SHAPES[name]

    @property
    def num_parameters(self) -> int:
        """Numbers in all weights; a tied head counts once."""
        heads = (2 * self.num_q_heads + 2 * self.num_kv_heads) * self.head_dim
        per_layer = heads * self.hidden_size + 3 * self.intermediate_size * self.hidden_size
        per_layer += 2 * self.hidden_size + 2 * self.head_dim
        tables = 1 if self.tie_word_embeddings else 2
        outside = tables * self.vocab_size * self.hidden_size + self.hidden_size
        return self.num_layers * per_layer + outside

    def weight_bytes(self, dtype: "torch.dtype") -> int:
        """Bytes of all weights in `dtype`."""
        return self.num_parameters * dtype.itemsize

    def kv_bytes_per_token(self, dtype: "torch.dtype") -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize

    def fingerprint(self, weights: str, dtype: "torch.dtype") -> str:
        """32 hex digits, equal where the same function is served: same shape, weights and dtype.

        weights: what names the weights, as made by weights.py or random_weights.py. End tokens and
        sampling defaults do not change the function and are left out.
        """
        fields = (
            self.architecture,
            self.vocab_size,
            self.hidden_size,
            self.num_layers,
            self.num_q_heads,
            self.num_kv_heads,
            self.head_dim,
            self.intermediate_size,
            self.rms_norm_eps,
            self.tie_word_embeddings,
            self.rope_theta,
            self.rope_scaling,
            str(dtype),
            weights,
        )
        return xxhash.xxh3_128_hexdigest("\n".join(repr(field) for field in fields).encode())


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


_NAMED_SHAPES = {
    "0.6B": _qwen3(1024, 28, 16, 3072, tied=True),
    "1.7B": _qwen3(2048, 28, 16, 6144, tied=True),
    "4B": _qwen3(2560, 36, 32, 9728, tied=True),
    "8B": _qwen3(4096, 36, 32, 12_288, tied=False),
    "14B": _qwen3(5120, 40, 40, 17_408, tied=False),
    "32B": _qwen3(5120, 64, 64, 25_600, tied=False),
    # Narrow layers need a wider spread: their outputs would not move the residual otherwise.
    "tiny": _small(128, 4, 4, 4096, 0.1),
    "bench": _small(512, 8, 8, 32_768, 0.05),
}
