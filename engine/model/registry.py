"""Architectures that can be run, by the name in config.json."""

from collections.abc import Callable
from functools import partial

import torch

from quire.engine.errors import ConfigError
from quire.engine.model import llama, mistral, phi3, qwen2, qwen3, qwen3_moe
from quire.engine.model.base import CausalModel
from quire.engine.model.config import (
    GPT2,
    LLAMA,
    MISTRAL,
    PHI3,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    ModelConfig,
)
from quire.engine.model.decoder import Decoder
from quire.engine.model.fp8_modules import check_skipped
from quire.engine.model.gpt2 import Gpt2
from quire.engine.model.layers.build_context import BuildContext
from quire.engine.model.layers.parallel import World
from quire.kernels.ops import Ops, has_experts, has_fp8, has_fp8_experts
from quire.kernels.support import (
    BLOCK_SIZES,
    check_device,
    check_fp8,
    check_mixture,
    check_supported,
)

Model = CausalModel

_MODELS: dict[str, Callable[[BuildContext, ModelConfig], CausalModel]] = {
    QWEN3: partial(Decoder, spec=qwen3.ATTENTION),
    QWEN3_MOE: partial(Decoder, spec=qwen3_moe.ATTENTION),
    QWEN2: partial(Decoder, spec=qwen2.ATTENTION),
    LLAMA: partial(Decoder, spec=llama.ATTENTION),
    MISTRAL: partial(Decoder, spec=mistral.ATTENTION),
    PHI3: partial(Decoder, spec=phi3.ATTENTION),
    GPT2: Gpt2,
}


def build_model(
    config: ModelConfig,
    ops: Ops,
    *,
    dtype: torch.dtype,
    device: torch.device,
    world: World | None = None,
    int8: bool = False,
) -> CausalModel:
    """A model with unfilled parameters; `load_checkpoint` or `fill_random` comes next. Raises
    ConfigError.

    int8: make matrices int8 rows with scales, which are filled from any float type.
    """
    if config.architecture not in _MODELS:
        known = ", ".join(_MODELS)
        raise ConfigError(f"architecture {config.architecture}: not supported; known: {known}")
    check_operations(config, ops)
    _check_formats(config, int8=int8)
    if device.type == "cuda":
        check_kernels(config, dtype, device)
    # Tensors made under inference mode could not be filled by threads, which are not under it.
    with torch.inference_mode(False):
        context = BuildContext(ops, world or World(), dtype, device, config.fp8, int8)
        model = _MODELS[config.architecture](context, config)
    model.int8 = int8
    if config.fp8 is not None:
        check_skipped(config.fp8.skipped, (placement.name for placement in model.placements()))
    return model


def check_operations(config: ModelConfig, ops: Ops) -> None:
    """Refuse a model that needs an operation which the device's kernels lack. Raises
    ConfigError."""
    if config.experts is not None and not has_experts(ops):
        raise ConfigError(
            f"architecture {config.architecture}: this device has no kernels for mixtures of "
            "experts; they run with device = cpu or cuda"
        )
    if config.fp8 is None:
        return
    if not has_fp8(ops):
        raise ConfigError(
            "this device has no kernels for FP8 weights; they run with device = cpu or cuda"
        )
    if config.experts is not None and not has_fp8_experts(ops):
        raise ConfigError(
            f"architecture {config.architecture}: this device has no kernels for experts with FP8 "
            "weights; they run with device = cpu or cuda"
        )


def _check_formats(config: ModelConfig, *, int8: bool) -> None:
    """Refuse a format that the model cannot have: FP8 or int8 for matrices stored transposed, int8
    for FP8 weights or for experts."""
    kind = "fp8" if config.fp8 is not None else "int8" if int8 else None
    if config.architecture == GPT2 and kind is not None:
        raise ConfigError(
            f"quantization = {kind}: not supported for {GPT2}, whose matrices are stored transposed"
        )
    if not int8:
        return
    if config.fp8 is not None:
        raise ConfigError("quantization = int8: the weights are FP8 already")
    if config.experts is not None:
        raise ConfigError(
            f"quantization = int8: not supported for {config.architecture}, a mixture of experts"
        )


def check_kernels(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse here what a GPU's kernel would refuse in the first step. Raises ConfigError."""
    try:
        group = config.num_q_heads // config.num_kv_heads
        check_supported(config.head_dim, dtype, BLOCK_SIZES[0], group)
        if config.experts is not None:
            check_mixture(config.experts.count, config.experts.per_token)
        check_device(device)
        if config.fp8 is not None:
            check_fp8(device)
    except ValueError as error:
        raise ConfigError(f"device = cuda: {error}") from None
