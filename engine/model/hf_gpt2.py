"""Reads GPT-2's config.json, whose keys have names of their own.

Invariant: as in `hf_config.py`: a key that changes what is computed is understood or refused by
name. Defaults are those of transformers' class.
"""

from typing import Any

from quire.engine.json_file import JsonFile
from quire.engine.model.config import GPT2, ModelConfig
from quire.engine.model.hf_limits import (
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_VOCAB,
    MAX_WIDTH,
)

_GELU = ("gelu_new", "gelu_pytorch_tanh")  # two names of one function
_COMMON = {  # what other families call it, as transformers lets files of GPT-2 do too
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
_END = 50_256


def read_gpt2(config: JsonFile) -> ModelConfig:
    """The model, but for its end tokens, its data type and its sampling. Raises ConfigError."""
    _refuse_variants(config)
    hidden = config.integer("n_embd", 768, most=MAX_WIDTH)
    heads = config.integer("n_head", 12, most=MAX_HEADS)
    if hidden % heads or hidden // heads > MAX_HEAD_DIM:
        config.refuse("n_embd", f"must be n_head = {heads} times at most {MAX_HEAD_DIM}")
    model = ModelConfig(
        architecture=GPT2,
        vocab_size=config.integer("vocab_size", 50_257, most=MAX_VOCAB),
        hidden_size=hidden,
        num_layers=config.integer("n_layer", 12, most=MAX_LAYERS),
        num_q_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=config.integer("n_inner", 4 * hidden, most=MAX_WIDTH),
        rms_norm_eps=config.number("layer_norm_epsilon", 1e-5, above=0, most=1),
        tie_word_embeddings=config.boolean("tie_word_embeddings", True),
        max_position_embeddings=config.integer("n_positions", 1024, most=MAX_POSITIONS),
        rope_theta=0.0,
        initializer_range=config.number("initializer_range", 0.02, above=0),
    )
    found = {
        "n_embd": model.hidden_size,
        "n_layer": model.num_layers,
        "n_head": model.num_q_heads,
        "n_positions": model.max_position_embeddings,
    }
    for theirs, ours in _COMMON.items():
        if config.has(theirs) and config.data[theirs] != found[ours]:
            config.refuse(theirs, f"contradicts {ours} = {found[ours]}")
    return model


def written_gpt2(config: ModelConfig) -> dict[str, Any]:
    """The config.json that says the same, but for the data type."""
    ends = config.eos_token_ids
    return {
        "architectures": [GPT2],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_q_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_position_embeddings,
        "layer_norm_epsilon": config.rms_norm_eps,
        "activation_function": _GELU[0],
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "bos_token_id": None,
        "eos_token_id": ends[0] if ends else None,
    }


def default_end(config: JsonFile, vocab_size: int) -> tuple[int, ...]:
    """The end token of a file that does not speak of it."""
    silent = "eos_token_id" not in config.data
    return (_END,) if silent and vocab_size > _END else ()


def _refuse_variants(config: JsonFile) -> None:
    """Refuse variants of GPT-2 that transformers computes and Quire does not."""
    config.only("activation_function", *_GELU)
    config.only("scale_attn_weights", True)
    for key in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"):
        config.only(key, False)
    config.only("add_cross_attention", False)
