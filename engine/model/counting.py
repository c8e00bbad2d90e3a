"""The size of a model's weights, counted from their placements, without allocating them."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch

from quire.engine.model.config import ModelConfig
from quire.engine.model.layers.quantized import SCALE
from quire.engine.model.registry import build_model
from quire.kernels import reference
from quire.kernels.ops import Ops


@dataclass(frozen=True, slots=True)
class Count:
    """parameters: numbers, a tied head once. nbytes: of all of them, as they are held."""

    parameters: int
    nbytes: int


@lru_cache(maxsize=64)
def count(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> Count:
    """Parameters and bytes of all weights of a model if they are kept in `dtype`."""
    model = build_model(config, cast(Ops, reference), dtype=dtype, device=torch.device("meta"))
    placements = model.placements()
    return Count(
        parameters=sum(
            math.prod(placement.shape)
            for placement in placements
            if not placement.name.endswith(SCALE)
        ),
        nbytes=sum(placement.nbytes for placement in placements),
    )
