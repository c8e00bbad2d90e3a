"""Architectures that can be run, by the name in config.json."""

from contextlib import nullcontext

import torch

from quire.engine.errors import ConfigError
from quire.engine.model import llama, qwen2, qwen3
from quire.engine.model.base import CausalModel
from quire.engine.model.config import LLAMA, QWEN2, QWEN3, ModelConfig
from quire.engine.model.decoder import Decoder
from quire.engine.model.layers.parallel import World
from quire.engine.model.layers.placement import matrices_as_int8
from quire.kernels.ops import Ops
from quire.kernels.support import BLOCK_SIZES, check_device, check_supported

Model = CausalModel

_MODELS = {QWEN3: qwen3.ATTENTION, QWEN2: qwen2.ATTENTION, LLAMA: llama.ATTENTION}


def build_model(
    config: ModelConfig,
    ops: Ops,
    *,
    dtype: torch.dtype,
    device: torch.device,
    world: World | None = None,
    quantization: str | None = None,
) -> CausalModel:
    """A model with unfilled parameters; `load` or `load_random` comes next. Raises ConfigError.

    quantization: "int8" makes matrices int8 rows with scales, which are filled from any float type.
    """
    if config.architecture not in _MODELS:
        known = ", ".join(_MODELS)
        raise ConfigError(f"architecture {config.architecture}: not supported; known: {known}")
    _check_kernels(config, dtype, device)
    spec = _MODELS[config.architecture]
    # Tensors made under inference mode could not be filled by threads, which are not under it.
    with torch.inference_mode(False), matrices_as_int8() if quantization else nullcontext():
        model = Decoder(config, spec, ops, dtype=dtype, device=device, world=world or World())
    model.quantization = quantization
    return model


def _check_kernels(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse here what a kernel would refuse in the first step."""
    if device.type != "cuda":
        return
    try:
        group = config.num_q_heads // config.num_kv_heads
        check_supported(config.head_dim, dtype, BLOCK_SIZES[0], group)
        check_device(device)
    except ValueError as error:
        raise ConfigError(f"device = {device.type}: {error}") from None
