"""A model's configuration: shape, position encoding, end tokens and default sampling parameters.

Invariant: a ModelConfig that exists describes a model that Quire computes in full. If a checkpoint
asks for something that Quire does not compute (another activation, another kind of attention, ...)
it is refused when its files are read, never ignored.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from quire.engine.errors import ConfigError

if TYPE_CHECKING:
    import torch

QWEN3 = "Qwen3ForCausalLM"
QWEN3_MOE = "Qwen3MoeForCausalLM"
QWEN2 = "Qwen2ForCausalLM"
LLAMA = "LlamaForCausalLM"
MISTRAL = "MistralForCausalLM"
PHI3 = "Phi3ForCausalLM"
GPT2 = "GPT2LMHeadModel"


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
class Llama3Scaling:
    """RoPE of Llama 3.1: slow frequencies divided by `factor`, fast ones kept, a ramp between.

    A frequency is slow if it turns fewer than `low_freq_factor` times over
    `original_max_position_embeddings` positions, fast if more than `high_freq_factor` times.
    """

    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float
    high_freq_factor: float


@dataclass(frozen=True, slots=True)
class Experts:
    """Mixture-of-experts layers: each token uses a few experts (Shazeer et al., 2017).

    intermediate_size: inner width of one expert. norm_topk_prob: whether the weights of a token's
    experts are scaled to a sum of 1. dense_layers: layers that have one dense MLP instead.
    """

    count: int
    per_token: int
    intermediate_size: int
    norm_topk_prob: bool
    dense_layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Fp8:
    """Linear layers in FP8, as Qwen publishes them: e4m3 with one scale per block of 128 x 128;
    activations are quantized per token and 128 columns. Embeddings, head, routers and norms are not
    FP8.

    skipped: modules that stay in the model's dtype, by their names in the checkpoint; a name also
    stands for everything inside that module, and for all modules that end with it. made_on_load:
    the checkpoint is not FP8 and is converted while it is loaded.
    """

    skipped: tuple[str, ...] = ()
    made_on_load: bool = False


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only model. Norms, activation, biases and kind of positions: see its architecture.

    rms_norm_eps: of its norms, whatever they are. rope_theta: 0 where positions are learned.
    max_position_embeddings: most positions, YaRN's stretch included. stored_dtype: "float32",
    "bfloat16" or "float16". eos_token_ids: union of config.json and generation_config.json.
    initializer_range: standard deviation of random matrices. experts: None in a dense model.
    fp8: None where no weight is quantized. embeds_only: there is no output head (the embedding
    stands in its place, and what it would say means nothing). sliding_window: tokens that each sees
    in a layer, itself among them; None: all before it. full_layers: those that see all where the
    others have a window, rising; never all of them.
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
    rope_scaling: RopeScaling | Llama3Scaling | None = None
    stored_dtype: str = "bfloat16"
    eos_token_ids: tuple[int, ...] = ()
    generation: GenerationDefaults = GenerationDefaults()
    initializer_range: float = 0.02
    experts: Experts | None = None
    fp8: Fp8 | None = None
    embeds_only: bool = False
    sliding_window: int | None = None
    full_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_q_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_attention_heads = {self.num_q_heads}: must be a multiple of "
                f"num_key_value_heads = {self.num_kv_heads}"
            )
        experts = self.experts
        if experts is not None and experts.per_token > experts.count:
            raise ConfigError(
                f"num_experts_per_tok = {experts.per_token}: must be at most "
                f"num_experts = {experts.count}"
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
        from quire.engine.model.named_shapes import named

        return named(name)

    def experts_of(self, layer: int) -> Experts | None:
        """The experts of a layer, or None where its MLP is dense."""
        if self.experts is None or layer in self.experts.dense_layers:
            return None
        return self.experts

    def window_of(self, layer: int) -> int | None:
        """Tokens that each sees in a layer, or None for all."""
        return None if layer in self.full_layers else self.sliding_window

    @property
    def window_layers(self) -> int:
        """How many layers have a window while others see everything; else 0."""
        return self.num_layers - len(self.full_layers) if self.full_layers else 0

    @property
    def num_parameters(self) -> int:
        """Numbers in all weights; a tied head counts once, scales of FP8 weights not at all."""
        from quire.engine.model.counting import count

        return count(self).parameters

    def weight_bytes(self, dtype: "torch.dtype") -> int:
        """Bytes of all weights; those that are not quantized are kept in `dtype`."""
        from quire.engine.model.counting import count

        return count(self, dtype).nbytes

    def kv_bytes_per_token(self, dtype: "torch.dtype") -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize

    def fingerprint(
        self, weights: str, dtype: "torch.dtype", cache_dtype: "torch.dtype | None" = None
    ) -> str:
        """32 hex digits, equal where the same function is served: same shape, weights and dtypes.

        weights: what names the weights, as `engine/weights` makes it. cache_dtype: of
        keys and values; None: as dtype. End tokens and sampling defaults do not change the function
        and are left out.
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
            str(cache_dtype or dtype),
            weights,
            *(part for part in (self.experts, self.fp8) if part is not None),
            *(("without a head",) if self.embeds_only else ()),
            *(() if self.sliding_window is None else (self.sliding_window,)),
            *(() if not self.full_layers else (self.full_layers,)),
        )
        return xxhash.xxh3_128_hexdigest("\n".join(repr(field) for field in fields).encode())
