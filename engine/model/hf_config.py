"""Reads a model's configuration from Hugging Face's files, in the key styles of 4.x and 5.x.

Invariant: a key that changes what the model computes is understood or refused by its path; keys
that only concern training are left alone. Sizes have limits, which hold before anything is
allocated. Defaults are those of transformers' own classes.
"""

from dataclasses import replace
from pathlib import Path

from quire.engine.errors import ConfigError
from quire.engine.json_file import JsonFile
from quire.engine.model.config import GPT2, Experts, Fp8, GenerationDefaults, ModelConfig
from quire.engine.model.hf_embeddings import check_modules, embeds_only
from quire.engine.model.hf_families import EXPERT_KEYS, Family, read_family
from quire.engine.model.hf_gpt2 import default_end, read_gpt2
from quire.engine.model.hf_limits import (
    MAX_EXPERTS,
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCAB,
    MAX_WIDTH,
)
from quire.engine.model.hf_quantization import read_quantization, refuse_other_files
from quire.engine.model.hf_rope import read_rope
from quire.engine.model.hf_unsupported import refuse_unsupported, refuse_unsupported_decoding
from quire.engine.model.hf_windows import read_windows

_DTYPES = ("float32", "bfloat16", "float16")
_COUNT_OF_EXPERTS = ("num_experts", "num_local_experts")


def read_directory(path: Path) -> ModelConfig:
    """The configuration of the model in a directory. Raises ConfigError."""
    if not path.is_dir():
        raise ConfigError(f"{path}: no such directory")
    refuse_other_files(path)
    file = path / "config.json"
    if not (file.exists() or file.is_symlink()):
        raise ConfigError(f"{file}: no such file, so {path} is not the directory of a model")
    config = JsonFile.read(file)
    generation = path / "generation_config.json"
    there = generation.exists() or generation.is_symlink()
    defaults = JsonFile.read(generation) if there else config  # where files before 4.26 have them
    architecture, family = read_family(config)
    fp8 = read_quantization(config)
    refuse_unsupported_decoding(defaults)
    sampling = _generation(defaults)
    if architecture == GPT2:
        refuse_unsupported(config, family.keys, alone=True)
        check_modules(path)
        return replace(_gpt2(config, defaults), generation=sampling, fp8=fp8)
    window, full_layers = read_windows(config, family.windows, family.window)
    refuse_unsupported(config, family.keys)
    eos = defaults.integers("eos_token_id", least=0, below=config.integer("vocab_size"))
    bare = embeds_only(path, config)
    try:
        model = _model(config, architecture, family, sampling, eos, fp8)
        model = replace(model, sliding_window=window, full_layers=full_layers)
        return replace(model, tie_word_embeddings=True, embeds_only=True) if bare else model
    except ConfigError as error:
        named = str(error).startswith(config.name)
        raise error if named else ConfigError(f"{config.name}: {error}") from None


def _gpt2(config: JsonFile, defaults: JsonFile) -> ModelConfig:
    model = read_gpt2(config)
    vocab = model.vocab_size
    named = [file.integers("eos_token_id", least=0, below=vocab) for file in (config, defaults)]
    eos = tuple(dict.fromkeys(sum(named, ()))) or default_end(config, vocab)
    return replace(model, eos_token_ids=eos, stored_dtype=_stored_dtype(config))


def _model(
    config: JsonFile,
    architecture: str,
    family: Family,
    sampling: GenerationDefaults,
    eos: tuple[int, ...],
    fp8: Fp8 | None,
) -> ModelConfig:
    vocab = config.integer("vocab_size", most=MAX_VOCAB)
    eos = config.integers("eos_token_id", least=0, below=vocab) + eos
    theta, scaling, positions = read_rope(config)
    if scaling is not None and not family.scaled_rope:
        key = "rope_scaling" if config.has("rope_scaling") else "rope_parameters"
        config.refuse(key, f"is not supported for {architecture}")
    q_heads, kv_heads, head_dim = _heads(config, family)
    layers = config.integer("num_hidden_layers", most=MAX_LAYERS)
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab,
        hidden_size=config.integer("hidden_size", most=MAX_WIDTH),
        num_layers=layers,
        num_q_heads=q_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=config.integer("intermediate_size", most=MAX_WIDTH),
        rms_norm_eps=config.number("rms_norm_eps", family.rms_norm_eps, above=0, most=1),
        tie_word_embeddings=config.boolean("tie_word_embeddings", False),
        max_position_embeddings=positions,
        rope_theta=theta,
        rope_scaling=scaling,
        stored_dtype=_stored_dtype(config),
        eos_token_ids=tuple(dict.fromkeys(eos)),
        generation=sampling,
        initializer_range=config.number("initializer_range", 0.02, above=0),
        experts=_experts(config, layers) if family.keys == EXPERT_KEYS else None,
        fp8=fp8,
    )


def _heads(config: JsonFile, family: Family) -> tuple[int, int, int]:
    """Heads of queries, heads of keys and values, and the dimensions of each."""
    q_heads = config.integer("num_attention_heads", most=MAX_HEADS)
    if family.kv_heads_given or config.has("num_key_value_heads"):
        kv_heads = config.integer("num_key_value_heads", most=MAX_HEADS)
    else:
        kv_heads = q_heads
    head_dim = config.integer("head_dim", family.head_dim, most=MAX_HEAD_DIM)
    if head_dim is not None:
        return q_heads, kv_heads, head_dim
    hidden = config.integer("hidden_size", most=MAX_WIDTH)
    if hidden % q_heads or hidden // q_heads > MAX_HEAD_DIM:
        config.refuse(
            "hidden_size",
            f"must be num_attention_heads = {q_heads} times at most {MAX_HEAD_DIM}, "
            "where there is no head_dim",
        )
    return q_heads, kv_heads, hidden // q_heads


def _experts(config: JsonFile, layers: int) -> Experts:
    """Every decoder_sparse_step-th layer has them, but for those named as dense."""
    old, new = (config.integer(key, None, most=MAX_EXPERTS) for key in _COUNT_OF_EXPERTS)
    if old is not None and new is not None and old != new:
        config.refuse("num_local_experts", f"contradicts num_experts = {old}")
    step = config.integer("decoder_sparse_step", 1, most=MAX_LAYERS)
    named = config.integers("mlp_only_layers", least=0, below=layers)
    dense = (layer for layer in range(layers) if layer in named or (layer + 1) % step)
    return Experts(
        count=config.integer("num_experts", most=MAX_EXPERTS) if new is None else new,
        per_token=config.integer("num_experts_per_tok", most=MAX_EXPERTS),
        intermediate_size=config.integer("moe_intermediate_size", most=MAX_WIDTH),
        norm_topk_prob=config.boolean("norm_topk_prob", False),
        dense_layers=tuple(dense),
    )


def _stored_dtype(config: JsonFile) -> str:
    """The checkpoint's dtype: `dtype` (5.x) or `torch_dtype` (4.x); float32 if neither is there."""
    for key in ("dtype", "torch_dtype"):
        config.only(key, *_DTYPES)
    old, new = config.string("torch_dtype", None), config.string("dtype", None)
    if old is not None and new is not None and old != new:
        config.refuse("torch_dtype", f"contradicts dtype = {new}")
    return new or old or "float32"


def _generation(defaults: JsonFile) -> GenerationDefaults:
    """do_sample false is temperature 0; true without a temperature is temperature 1. Ranges are
    those of requests."""
    do_sample = defaults.boolean("do_sample", None)
    temperature = defaults.number("temperature", None, least=0, most=100)
    if do_sample is False:
        temperature = 0.0
    elif do_sample is True and temperature is None:
        temperature = 1.0
    return GenerationDefaults(
        temperature=temperature,
        top_p=defaults.number("top_p", None, above=0, most=1),
        top_k=defaults.integer("top_k", None, least=0),
        min_p=defaults.number("min_p", None, least=0, most=1),
        repetition_penalty=defaults.number("repetition_penalty", None, above=0, most=10),
    )
