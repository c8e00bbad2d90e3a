"""What a configuration says of the model before anything is loaded. Needs no torch.

Invariant: whoever asks, before the weights are there or after, gets the same answer.
"""

from pathlib import Path

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.model.config import ModelConfig

RANDOM_PREFIX = "random:"


def model_config(config: EngineConfig) -> ModelConfig:
    """The model's configuration, from its directory or its named random shape."""
    if config.model.startswith(RANDOM_PREFIX):
        return ModelConfig.named_shape(config.model.removeprefix(RANDOM_PREFIX))
    return ModelConfig.from_directory(Path(config.model))


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
