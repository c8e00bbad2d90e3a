"""Reads a model's configuration from Hugging Face's files, in the key styles of 4.x and 5.x.

Invariant: a key that changes what the model computes is understood or refused by name; keys that
only concern training are left alone. Defaults are those of transformers' Qwen3Config.
"""

import math
from pathlib import Path

from quire.engine.errors import ConfigError
from quire.engine.json_file import JsonFile
from quire.engine.model.config import QWEN3, GenerationDefaults, ModelConfig, RopeScaling

_DTYPES = ("float32", "bfloat16", "float16")
_YARN_KEYS = {
    *("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}


def read_directory(path: Path) -> ModelConfig:
    """The configuration of the model in a directory. Raises ConfigError."""
    if not path.is_dir():
        raise ConfigError(f"{path}: no such directory")
    config = JsonFile.read(path / "config.json")
    generation = path / "generation_config.json"
    defaults = JsonFile.read(generation) if generation.exists() else JsonFile({}, str(generation))
    architecture = _architecture(config)
    _refuse_unsupported(config)
    theta, scaling, positions = _rope(config)
    vocab = config.integer("vocab_size")
    eos = config.integers("eos_token_id", least=0, below=vocab)
    eos += defaults.integers("eos_token_id", least=0, below=vocab)
    try:
        return ModelConfig(
            architecture=architecture,
            vocab_size=vocab,
            hidden_size=config.integer("hidden_size"),
            num_layers=config.integer("num_hidden_layers"),
            num_q_heads=config.integer("num_attention_heads"),
            num_kv_heads=config.integer("num_key_value_heads"),
            head_dim=config.integer("head_dim", 128),
            intermediate_size=config.integer("intermediate_size"),
            rms_norm_eps=config.number("rms_norm_eps", 1e-6, above=0),
            tie_word_embeddings=config.boolean("tie_word_embeddings", False),
            max_position_embeddings=positions,
            rope_theta=theta,
            rope_scaling=scaling,
            stored_dtype=_stored_dtype(config),
            eos_token_ids=tuple(dict.fromkeys(eos)),
            generation=_generation(defaults),
            initializer_range=config.number("initializer_range", 0.02, above=0),
        )
    except ConfigError as error:
        named = str(error).startswith(config.name)
        raise error if named else ConfigError(f"{config.name}: {error}") from None


def _architecture(config: JsonFile) -> str:
    names = config.data.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        config.refuse("architectures", "must be a list of one name")
    config.only("architectures", [QWEN3])
    return names[0]


def _refuse_unsupported(config: JsonFile) -> None:
    """Refuse, by name, what a configuration may ask for and Quire does not compute."""
    config.only("hidden_act", "silu")
    config.only("attention_bias", False)
    config.only("use_sliding_window", False)
    config.only("model_type", "qwen3")
    if config.has("quantization_config"):
        config.refuse("quantization_config", "quantized checkpoints are not supported")
    layers = config.data.get("layer_types")
    if layers is not None and (
        not isinstance(layers, list) or any(kind != "full_attention" for kind in layers)
    ):
        config.refuse("layer_types", 'supported: "full_attention" in every layer')


def _stored_dtype(config: JsonFile) -> str:
    """The checkpoint's dtype: `dtype` (5.x) or `torch_dtype` (4.x); float32 if neither is there."""
    key = "dtype" if config.has("dtype") else "torch_dtype"
    config.only(key, *_DTYPES)
    return config.string(key, "float32")


def _rope(config: JsonFile) -> tuple[float, RopeScaling | None, int]:
    """Base of the rotary frequencies, their scaling, and the number of positions."""
    positions = config.integer("max_position_embeddings")
    section = _rope_section(config)
    if section is not None and section.has("rope_theta"):
        theta = section.number("rope_theta", above=1)
    else:
        theta = config.number("rope_theta", 10_000.0, above=1)
    if section is None:
        return theta, None, positions
    key = "rope_type" if section.has("rope_type") else "type"
    kind = section.string(key, "default")
    section.only(key, "default", "yarn")
    section.only("partial_rotary_factor", 1, 1.0)
    if kind == "default":
        return theta, None, positions
    scaling = _yarn(section, positions)
    stretched = int(scaling.factor * scaling.original_max_position_embeddings)
    return theta, scaling, max(positions, stretched)


def _rope_section(config: JsonFile) -> JsonFile | None:
    """rope_parameters (5.x) or rope_scaling (4.x). Both may stand there if they say the same."""
    new, old = config.section("rope_parameters"), config.section("rope_scaling")
    if new is not None and old is not None:
        said = [{k: v for k, v in one.data.items() if k != "rope_theta"} for one in (new, old)]
        if said[0] != said[1]:
            config.refuse("rope_scaling", "contradicts rope_parameters")
    return new if new is not None else old


def _yarn(section: JsonFile, positions: int) -> RopeScaling:
    for key in section.data:
        if key not in _YARN_KEYS and key != "partial_rotary_factor":
            section.refuse(key, f"unknown for yarn; known: {', '.join(sorted(_YARN_KEYS))}")
    original = section.integer("original_max_position_embeddings", positions)
    factor = section.number("factor", positions / original, above=0)
    attention_factor = section.number("attention_factor", None, above=0)
    if attention_factor is None:
        attention_factor = _attention_factor(section, factor)
    return RopeScaling(
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=attention_factor,
        beta_fast=section.number("beta_fast", 32.0, above=0),
        beta_slow=section.number("beta_slow", 1.0, above=0),
        truncate=section.boolean("truncate", True),
    )


def _attention_factor(section: JsonFile, factor: float) -> float:
    """0.1 ln(factor) + 1, or the ratio of two such terms where both mscales are given."""

    def term(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    mscale = section.number("mscale", None, least=0)
    mscale_all_dim = section.number("mscale_all_dim", None, least=0)
    if mscale and mscale_all_dim:
        return term(mscale) / term(mscale_all_dim)
    return term(1.0)


def _generation(defaults: JsonFile) -> GenerationDefaults:
    """do_sample false is temperature 0; true without a temperature is temperature 1."""
    do_sample = defaults.boolean("do_sample", None)
    temperature = defaults.number("temperature", None, least=0)
    if do_sample is False:
        temperature = 0.0
    elif do_sample is True and temperature is None:
        temperature = 1.0
    return GenerationDefaults(
        temperature=temperature,
        top_p=defaults.number("top_p", None, above=0, most=1),
        top_k=defaults.integer("top_k", None, least=0),
        min_p=defaults.number("min_p", None, least=0, most=1),
        repetition_penalty=defaults.number("repetition_penalty", None, above=0),
    )
