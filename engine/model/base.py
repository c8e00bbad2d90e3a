"""The base class of all models, and what they all do alike.

Invariant: parameters are allocated when a model is built and keep their addresses;
`quire.engine.weights` fills them in place. Inference only: no gradients.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from quire.engine.errors import ModelError
from quire.engine.model.config import ModelConfig
from quire.engine.model.forward_batch import ForwardBatch, KVCache
from quire.engine.model.layers.embedding import VocabTable
from quire.engine.model.layers.placement import Placement
from quire.engine.model.product import Product


class CausalModel(ABC):
    """A decoder that maps token ids to the logits of the next one.

    head: makes the logits.
    num_kv_heads: those of this rank, which its cache holds. qk_norm: whether any layer norms q and
    k, which decides what attention launches.
    weights_digest: what names the weights, once they are filled in. int8: whether matrices were
    made int8 rows while they were.
    """

    head: VocabTable

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, device: torch.device, num_kv_heads: int
    ) -> None:
        self.config = config
        self.num_kv_heads = num_kv_heads
        self.dtype = dtype
        self.device = device
        self.weights_digest: str | None = None
        self.int8 = False

    @property
    @abstractmethod
    def qk_norm(self) -> bool: ...

    @abstractmethod
    def placements(self) -> list[Placement]:
        """Every weight of a checkpoint, and where it goes."""

    @property
    @abstractmethod
    def embedding_weight(self) -> str:
        """The name of the embedding in a checkpoint, which a tied head may repeat."""

    def is_buffer(self, name: str) -> bool:
        """Whether a checkpoint may hold a tensor that is no weight, and is not read."""
        del name
        return False

    @abstractmethod
    def products(self) -> list[Product]:
        """Every product of a step, in its order."""

    @abstractmethod
    def distinct_layers(self) -> list[int]:
        """The first layer of each kind: all others launch the same kernels as one of these."""

    @abstractmethod
    def forward(
        self, batch: ForwardBatch, kv: KVCache, layers: Sequence[int] | None = None
    ) -> Tensor:
        """Write keys and values of a step's tokens; returns hidden states [T, H], not yet normed
        for the head. kv.k, kv.v: of this rank's heads. layers: only these; None: all."""

    @abstractmethod
    def logits(self, hidden: Tensor, rows: Tensor | None, part: bool = False) -> Tensor:
        """Logits after the final norm: [L, V] fp32. hidden: [T, H]; rows: [L] int64, None = all;
        part: of this rank's part of the vocabulary."""

    @abstractmethod
    def states(self, hidden: Tensor) -> Tensor:
        """Hidden states after the final norm, not rounded: [L, H] fp32. hidden: [L, H]."""

    @property
    def fingerprint(self) -> str:
        """32 hex digits, equal where keys and values have the model's data type as well."""
        return self.served_fingerprint(self.dtype)

    def served_fingerprint(self, cache_dtype: torch.dtype) -> str:
        """32 hex digits, equal on replicas that serve the same function: the same weights in the
        same form, over keys and values of the same data type."""
        if self.weights_digest is None:
            raise ModelError("the model has no weights yet")
        weights = self.weights_digest + (":int8" if self.int8 else "")
        return self.config.fingerprint(weights, self.dtype, cache_dtype)
