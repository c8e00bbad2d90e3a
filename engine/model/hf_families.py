"""The supported architectures, and how the keys of each one's config.json differ.

Invariant: an unsupported architecture is refused by name, with a list of the supported ones, before
anything else of the model is read.
"""

import re
from dataclasses import dataclass

from quire.engine.json_file import JsonFile
from quire.engine.model.config import GPT2, LLAMA, MISTRAL, PHI3, QWEN2, QWEN3, QWEN3_MOE
from quire.engine.model.hf_embeddings import WITHOUT_HEAD
from quire.engine.model.hf_windows import WindowKeys


@dataclass(frozen=True, slots=True)
class Family:
    """How an architecture's config.json is read.

    model_type: as in config.json. head_dim: the default; None: hidden_size / num_attention_heads.
    kv_heads_given: whether num_key_value_heads is required; if not, it defaults to
    num_attention_heads. windows: which keys ask for a sliding window (keys of an architecture
    without windows are ignored). window, rms_norm_eps: defaults. scaled_rope: whether YaRN and
    Llama 3's scaling mean the usual under those names. keys: other keys of its own that are read.
    """

    model_type: str
    windows: WindowKeys
    window: int | None = None
    head_dim: int | None = None
    kv_heads_given: bool = True
    rms_norm_eps: float = 1e-6
    scaled_rope: bool = True
    keys: tuple[str, ...] = ()


EXPERT_KEYS = (
    *("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"),
    *("norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"),
)
GPT2_KEYS = (
    *("n_positions", "n_embd", "n_layer", "n_head", "n_inner", "activation_function"),
    *("layer_norm_epsilon", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
    *("reorder_and_upcast_attn", "add_cross_attention"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
)
FAMILIES = {
    QWEN3: Family("qwen3", WindowKeys.NONE, head_dim=128),
    QWEN3_MOE: Family("qwen3_moe", WindowKeys.NONE, keys=EXPERT_KEYS),
    QWEN2: Family("qwen2", WindowKeys.SWITCHED, window=4096),
    LLAMA: Family("llama", WindowKeys.NONE, kv_heads_given=False),
    MISTRAL: Family("mistral", WindowKeys.ALONE, window=4096),
    PHI3: Family(
        "phi3",
        WindowKeys.ALONE,
        kv_heads_given=False,
        rms_norm_eps=1e-5,
        scaled_rope=False,
        keys=("original_max_position_embeddings",),
    ),
    GPT2: Family("gpt2", WindowKeys.NONE, keys=GPT2_KEYS),
}
_SUPPORTED = (*FAMILIES, *WITHOUT_HEAD)
_OTHERS = (  # what is behind names of architectures that people try
    (r"VL|Vision|Omni|Image|Video|Audio|ConditionalGeneration|Mllama", "vision and audio"),
    (r"Qwen3Next|Qwen3_5|DeltaNet", "hybrids with gated delta-net"),
    (r"Linear|Mamba|Hybrid|Jamba", "hybrids with linear attention"),
    (r"Moe|Mixtral", "this kind of experts"),
    (r"Classification|Reward", "models that judge with a head of their own"),
    (r"Embedding|Model$", "this kind of embeddings"),
)


def read_family(config: JsonFile) -> tuple[str, Family]:
    """The architecture's name, with its head, and its Family. Raises ConfigError."""
    names = config.data.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        config.refuse("architectures", "must be a list of one name")
    name: str = WITHOUT_HEAD.get(names[0], names[0])
    if name not in FAMILIES:
        kind = next((kind for pattern, kind in _OTHERS if re.search(pattern, name)), None)
        what = "" if kind is None else f"{kind}: "
        config.refuse("architectures", f"{what}not supported; supported: {', '.join(_SUPPORTED)}")
    family = FAMILIES[name]
    config.only("model_type", family.model_type)
    return name, family
