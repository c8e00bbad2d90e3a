"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm, GELU, and biases everywhere.

Invariant: as of `decoder.py`, whose layer this is with other parts. A bias is added by the
operation behind its product: to q, k and v where they are written to the cache, within the
activation, and to the residual within the norm that comes next, which may be the next layer's:

    residual -> bias of before, norm -> qkv -> biases, cache write, attention -> o, + residual
             -> bias, norm -> up -> bias, GELU -> down, + residual

A checkpoint holds matrices as [inputs, outputs], and q, k and v as one.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.engine.model.base import CausalModel
from quire.engine.model.config import ModelConfig
from quire.engine.model.forward_batch import ForwardBatch, KVCache
from quire.engine.model.layers.attention import attend
from quire.engine.model.layers.build_context import BuildContext
from quire.engine.model.layers.embedding import VocabTable
from quire.engine.model.layers.linear import (
    ColumnParallelLinear,
    Part,
    RowParallelLinear,
    stored_as_one,
)
from quire.engine.model.layers.parallel import length, scale_slice
from quire.engine.model.layers.placement import Placement, whole
from quire.engine.model.product import Product
from quire.kernels.weight import Weight

_MASKS = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")  # old files keep them


class LayerNorm:
    """A norm with a weight and a bias. module: its name in the checkpoint."""

    def __init__(self, context: BuildContext, module: str, config: ModelConfig) -> None:
        self._ops, self._eps = context.ops, config.rms_norm_eps
        self.weight, self.bias = context.new(config.hidden_size), context.new(config.hidden_size)
        self.placements = [
            whole(f"{module}.weight", self.weight),
            whole(f"{module}.bias", self.bias),
        ]

    def __call__(self, residual: Tensor, add: Tensor | None = None) -> Tensor:
        """[T, H] -> [T, H]; `add` is added to the residual first, in its own storage."""
        return self._ops.layer_norm(residual, self.weight, self.bias, self._eps, add=add)

    def states(self, hidden: Tensor) -> Tensor:
        """[L, H] -> [L, H] fp32, not rounded."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(hidden.float(), weight.shape, weight, bias, self._eps)


class Gpt2Layer:
    """One layer. Its weights are this rank's share."""

    def __init__(self, context: BuildContext, config: ModelConfig, index: int) -> None:
        self._ops, self._scale = context.ops, config.head_dim**-0.5
        name, hidden, inner = f"transformer.h.{index}", config.hidden_size, config.intermediate_size
        heads = context.world.split(config.num_q_heads, "n_head")
        mine = context.world.split(inner, "n_inner")
        stored = replace(context, transposed=True)
        taken = scale_slice(heads, config.head_dim)
        attn, mlp = f"{name}.attn", f"{name}.mlp"
        self.norm, self.mlp_norm = (
            LayerNorm(context, f"{name}.{norm}", config) for norm in ("ln_1", "ln_2")
        )
        parts = stored_as_one(f"{attn}.c_attn", [(hidden, taken)] * 3)
        self.qkv = ColumnParallelLinear(stored, parts, hidden, bias=True)
        self.o = RowParallelLinear(stored, f"{attn}.c_proj", hidden, hidden, taken, bias=True)
        up = [Part(f"{mlp}.c_fc", inner, mine)]
        self.up = ColumnParallelLinear(stored, up, hidden, bias=True)
        self.down = RowParallelLinear(stored, f"{mlp}.c_proj", hidden, inner, mine, bias=True)
        parts_of_it = self.norm, self.qkv, self.o, self.mlp_norm, self.up, self.down
        self.placements = [one for part in parts_of_it for one in part.placements]

    @property
    def kind(self) -> tuple[object, ...]:
        """See DecoderLayer."""
        return tuple((p.shape, p.nbytes) for p in self.placements)

    def products(self) -> list[Product]:
        first, second = self.qkv.product(norm=False), self.up.product(norm=False)
        return [first, self.o.product(), second, self.down.product()]

    def __call__(
        self,
        residual: Tensor,
        owed: Tensor | None,
        batch: ForwardBatch,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """residual: [T, H], whose storage may be reused; owed: [H], a bias that is still to be
        added to it; caches: [num_blocks, heads, block_size, D] -> the same two of what follows."""
        assert self.qkv.bias is not None and self.up.bias is not None
        assert self.down.bias is not None
        qkv = self.qkv.unbiased(self.norm(residual, owed))
        q = self._ops.kv_write(qkv, self.qkv.bias, batch.slot_mapping, k_cache, v_cache)
        attended = attend(self._ops, q, k_cache, v_cache, batch, self._scale)
        residual = self.o.added(attended, residual)
        inner = self.up.unbiased(self.mlp_norm(residual, self.o.bias))
        residual = self.down.added(self._ops.gelu_new(inner, self.up.bias), residual)
        return residual, self.down.bias


class Gpt2(CausalModel):
    """The whole model on one rank."""

    def __init__(self, context: BuildContext, config: ModelConfig) -> None:
        heads = context.world.split(config.num_kv_heads, "n_head")
        super().__init__(config, context.dtype, context.device, length(heads))
        self._ops = context.ops
        size = config.vocab_size, config.hidden_size
        self.embedding = VocabTable(context, "transformer.wte", *size)
        self.positions = context.new(config.max_position_embeddings, config.hidden_size)
        self.layers = [Gpt2Layer(context, config, index) for index in range(config.num_layers)]
        self.norm = LayerNorm(context, "transformer.ln_f", config)
        self.head = self.embedding
        if not config.tie_word_embeddings:
            self.head = VocabTable(context, "lm_head", *size)

    @property
    def qk_norm(self) -> bool:
        return False

    @property
    def embedding_weight(self) -> str:
        return f"{self.embedding.module}.weight"

    def is_buffer(self, name: str) -> bool:
        return _MASKS.fullmatch(name) is not None

    def placements(self) -> list[Placement]:
        placements = [
            *self.embedding.placements,
            whole("transformer.wpe.weight", self.positions),
            *(one for layer in self.layers for one in layer.placements),
            *self.norm.placements,
        ]
        return placements + ([] if self.head is self.embedding else self.head.placements)

    def products(self) -> list[Product]:
        weight = Weight(self.head.weight)
        head = Product(self.head.module, weight, out_dtype=torch.float32, sampled=True)
        return [one for layer in self.layers for one in layer.products()] + [head]

    def distinct_layers(self) -> list[int]:
        return [0]  # all are alike

    def forward(
        self, batch: ForwardBatch, kv: KVCache, layers: Sequence[int] | None = None
    ) -> Tensor:
        every = list(zip(self.layers, kv.k.unbind(), kv.v.unbind(), strict=True))
        residual = self.embedding.rows(batch.token_ids).add_(self.positions[batch.positions])
        owed: Tensor | None = None
        for layer, k, v in every if layers is None else [every[index] for index in layers]:
            residual, owed = layer(residual, owed, batch, k, v)
        return residual if owed is None else residual.add_(owed)

    def logits(self, hidden: Tensor, rows: Tensor | None, part: bool = False) -> Tensor:
        normed = self.norm(hidden if rows is None else hidden[rows])
        return self.head.logits(self._ops, normed, None, 0.0, part)

    def states(self, hidden: Tensor) -> Tensor:
        return self.norm.states(hidden)
