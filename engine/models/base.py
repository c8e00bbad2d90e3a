"""What every model offers, and what all of them do alike: taking weights in.

Invariant: parameters are allocated when a model is built and keep their addresses; loading fills
them in place. Inference only: no gradients.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from quire.engine.errors import ModelError
from quire.engine.forward_batch import ForwardBatch, KVCache
from quire.engine.layers.placement import Placement
from quire.engine.model_config import ModelConfig

Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Tells nobody."""
    del done, total


class CausalModel(ABC):
    """A decoder that maps token ids to the logits of the next one.

    num_kv_heads: those of this rank, which its cache holds.
    """

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, device: torch.device, num_kv_heads: int
    ) -> None:
        self.config = config
        self.num_kv_heads = num_kv_heads
        self.dtype = dtype
        self.device = device
        self._weights: str | None = None

    @abstractmethod
    def placements(self) -> list[Placement]:
        """Every weight of a checkpoint, and where it goes."""

    @abstractmethod
    def forward(self, batch: ForwardBatch, kv: KVCache) -> Tensor:
        """Write keys and values of a step's tokens; returns hidden states [T, H], not yet normed
        for the head. kv.k, kv.v: of this rank's heads."""

    @abstractmethod
    def logits(self, hidden: Tensor, rows: Tensor | None) -> Tensor:
        """Logits after the final norm: [L, V] fp32. hidden: [T, H]; rows: [L] int64, None = all."""

    def load(self, directory: Path, progress: Progress = no_progress) -> None:
        """Fill the parameters from safetensors. progress(bytes done, bytes in all).

        Raises ModelError: a file or weight that is missing, unexpected, misshapen or corrupt.
        """
        from quire.engine import weights

        self._weights = weights.load(directory, self, progress)

    def load_random(self, seed: int, progress: Progress = no_progress) -> None:
        """Fill the parameters with seeded noise, made on the device."""
        from quire.engine import random_weights

        self._weights = random_weights.fill(self, seed, progress)

    @property
    def fingerprint(self) -> str:
        """32 hex digits, equal on replicas that serve the same function."""
        if self._weights is None:
            raise ModelError("the model has no weights yet")
        return self.config.fingerprint(self._weights, self.dtype)
