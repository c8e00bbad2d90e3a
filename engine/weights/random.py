"""Seeded random weights: for benchmarks, tests, and checkpoints that mean nothing.

Invariant: a weight is a function of (seed, its name, its shape, the kind of device): neither the
model's dtype, nor the order of weights, nor how a tensor is shared out over ranks changes it.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from quire.engine.model.base import CausalModel
from quire.engine.model.config import GPT2, Experts, Fp8, Llama3Scaling, ModelConfig
from quire.engine.model.hf_families import FAMILIES
from quire.engine.model.hf_gpt2 import written_gpt2
from quire.engine.model.hf_windows import WindowKeys
from quire.engine.model.layers.placement import Placement
from quire.engine.model.layers.quantized import SCALE, QuantizingPlacement
from quire.engine.weights.checkpoint import INDEX, SINGLE
from quire.engine.weights.progress import Progress, no_progress
from quire.kernels.reference import quantize_blocks
from quire.kernels.weight import Weight

_CHUNK = 1 << 24  # numbers made at once: a whole number of rows is taken from it
_SHARD_BYTES = 4 << 30


def fill_random(model: CausalModel, seed: int, progress: Progress = no_progress) -> None:
    """Fill the parameters with seeded noise, made on the device."""
    assert model.config.fp8 is None or model.config.fp8.made_on_load  # noise is stored nowhere
    placements = model.placements()
    total, done = sum(placement.nbytes for placement in placements), 0
    for placement in placements:
        _fill_one(placement, model.config, seed, model.device)
        done += placement.nbytes
        progress(done, total)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
        torch.cuda.empty_cache()  # what the noise took is the cache's to have
    model.weights_digest = f"random:{seed}:{model.device.type}:{model.config.initializer_range}"


def _fill_one(placement: Placement, config: ModelConfig, seed: int, device: torch.device) -> None:
    pieces = _pieces(placement.name, placement.shape, config, seed, device)
    if isinstance(placement, QuantizingPlacement):  # which takes whole blocks
        pieces = iter([(0, torch.cat([made for _, made in pieces]))])
    for first, made in pieces:
        begin = max(first, placement.rows.start)
        end = min(first + made.shape[0], placement.rows.stop)
        if begin < end:
            placement.put(begin, made[begin - first : end - first])


def _pieces(
    name: str, shape: tuple[int, ...], config: ModelConfig, seed: int, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """A weight's rows in pieces (first row, [m, K] or [m] fp32): ones for norms, else noise."""
    generator = torch.Generator(device)
    generator.manual_seed(xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode()) >> 1)
    if len(shape) == 1:
        vector = torch.ones(shape, device=device)
        if name.endswith(".bias"):
            vector.normal_(0.0, config.initializer_range, generator=generator)
        yield 0, vector
        return
    step = max(1, _CHUNK // shape[1])
    for first in range(0, shape[0], step):
        piece = torch.empty(min(step, shape[0] - first), shape[1], device=device)
        yield first, piece.normal_(0.0, config.initializer_range, generator=generator)


# ---------------------------------------------------------------- as files


def save_random(
    shape: str | ModelConfig,
    directory: Path,
    seed: int = 0,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = _SHARD_BYTES,
    progress: Progress = no_progress,
) -> ModelConfig:
    """Write a directory in Hugging Face's format with random weights; returns its configuration.

    shape: a name of ModelConfig.named_shape, or a configuration. device: where the noise is
    generated (the CPU by default). dtype: of the stored weights; the shape's by default. No
    tokenizer is written.
    """
    config = ModelConfig.named_shape(shape) if isinstance(shape, str) else shape
    if config.fp8 is not None:  # stored as it is held
        config = dataclasses.replace(
            config, fp8=dataclasses.replace(config.fp8, made_on_load=False)
        )
    stored = dtype or getattr(torch, config.stored_dtype)
    where = device or torch.device("cpu")
    directory.mkdir(parents=True, exist_ok=True)
    _write_shards(config, stored, directory, seed, where, shard_bytes, progress)
    _write_json(directory / "config.json", hf_config(config, stored))
    _write_json(directory / "generation_config.json", hf_generation(config))
    return config


def _write_shards(
    config: ModelConfig,
    stored: torch.dtype,
    directory: Path,
    seed: int,
    device: torch.device,
    shard_bytes: int,
    progress: Progress,
) -> None:
    """The weights, in one file or in several with an index. device: makes the noise."""
    from safetensors.torch import save_file

    placements = {one.name: one for one in _outline(config, stored).placements()}
    shards = _shards({name: one.nbytes for name, one in placements.items()}, shard_bytes)
    total, done = sum(one.nbytes for one in placements.values()), 0
    files: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _stored(name, placements, config, seed, device) for name in names}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        files.update(dict.fromkeys(names, file))
        done += sum(tensor.nbytes for tensor in tensors.values())
        progress(done, total)
    if len(shards) > 1:
        _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": files})


def _outline(config: ModelConfig, dtype: torch.dtype) -> CausalModel:
    """The model on the meta device: its parameters take no memory."""
    from quire.engine.model.registry import build_model
    from quire.kernels import reference

    return build_model(config, reference, dtype=dtype, device=torch.device("meta"))


def hf_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """config.json of a model."""
    if config.architecture == GPT2:
        return written_gpt2(config) | {"dtype": str(dtype).removeprefix("torch.")}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        rope |= {"rope_type": "llama3" if isinstance(scaling, Llama3Scaling) else "yarn"}
        rope |= {name: getattr(scaling, name) for name in scaling.__dataclass_fields__}
    eos = list(config.eos_token_ids)
    return {
        "architectures": [config.architecture],
        "model_type": FAMILIES[config.architecture].model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_q_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_parameters": rope,
        "dtype": str(dtype).removeprefix("torch."),
        "hidden_act": "silu",
        "attention_bias": False,
        **_hf_window(config),
        "initializer_range": config.initializer_range,
        "bos_token_id": None,
        "eos_token_id": eos[0] if eos else None,
        **({} if config.fp8 is None else {"quantization_config": _hf_fp8(config.fp8)}),
        **({} if config.experts is None else _hf_experts(config.experts)),
    }


def _hf_window(config: ModelConfig) -> dict[str, Any]:
    if FAMILIES[config.architecture].windows is WindowKeys.ALONE:
        return {"sliding_window": config.sliding_window}
    if config.sliding_window is None:
        return {"use_sliding_window": False}
    layers = range(config.num_layers)
    full = len(config.full_layers)
    kinds = ["full" if layer in config.full_layers else "sliding" for layer in layers]
    return {
        "use_sliding_window": True,
        "max_window_layers": full,
        **({"layer_types": [f"{kind}_attention" for kind in kinds]} if full else {}),
        "sliding_window": config.sliding_window,
    }


def _hf_fp8(fp8: Fp8) -> dict[str, Any]:
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": list(fp8.skipped),
    }


def _hf_experts(experts: Experts) -> dict[str, Any]:
    return {
        "num_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.intermediate_size,
        "norm_topk_prob": experts.norm_topk_prob,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(experts.dense_layers),
    }


def hf_generation(config: ModelConfig) -> dict[str, Any]:
    """generation_config.json of a model."""
    defaults = config.generation
    values: dict[str, Any] = {
        name: getattr(defaults, name) for name in defaults.__dataclass_fields__
    }
    values["eos_token_id"] = list(config.eos_token_ids)
    if defaults.temperature is not None:
        values["do_sample"] = defaults.temperature > 0
    return {name: value for name, value in values.items() if value not in (None, [])}


def _shards(weights: dict[str, int], most: int) -> list[list[str]]:
    """Names, in order, cut so that each file holds at most `most` bytes (or one weight). weights:
    bytes of each."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, nbytes in weights.items():
        if shards[-1] and size + nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    return shards


def _stored(
    name: str,
    placements: dict[str, Placement],
    config: ModelConfig,
    seed: int,
    device: torch.device,
) -> Tensor:
    """What a checkpoint stores under a name: a weight, or its scales."""
    weight = name.removesuffix(SCALE)
    shape, dtype = placements[name].shape, placements[name].target.dtype
    if weight != name:
        scale = _quantized(weight, placements[weight].shape, config, seed, device).scale
        assert scale is not None
        return scale
    if dtype == torch.float8_e4m3fn:
        return _quantized(name, shape, config, seed, device).data
    out = torch.empty(shape, dtype=dtype)
    for first, piece in _pieces(name, shape, config, seed, device):
        out[first : first + piece.shape[0]].copy_(piece)
    return out


def _quantized(
    name: str, shape: tuple[int, ...], config: ModelConfig, seed: int, device: torch.device
) -> Weight:
    pieces = _pieces(name, shape, config, seed, device)
    return quantize_blocks(torch.cat([made for _, made in pieces]).cpu())


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
