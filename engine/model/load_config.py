"""The model's configuration as it is known before anything is loaded. Needs no torch.

Invariant: the answer is the same before the weights are loaded and after.
"""

from pathlib import Path

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.model.config import ModelConfig
from quire.engine.model.named_shapes import in_fp8

RANDOM_PREFIX = "random:"


def model_config(config: EngineConfig) -> ModelConfig:
    """The model's configuration, from its directory or its named random shape."""
    if config.model.startswith(RANDOM_PREFIX):
        shape = ModelConfig.named_shape(config.model.removeprefix(RANDOM_PREFIX))
    else:
        shape = ModelConfig.from_directory(Path(config.model))
    return in_fp8(shape) if config.quantization == "fp8" else shape


def resolve_max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    """Most tokens of a request. Raises ConfigError beyond what the model was made for."""
    limit = model.max_position_embeddings
    if config.max_model_len is None:
        return limit
    if config.max_model_len > limit:
        raise ConfigError(
            f"max_model_len = {config.max_model_len}: the model has {limit} positions"
        )
    return config.max_model_len
