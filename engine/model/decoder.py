"""A pre-norm decoder with RMSNorm, grouped-query attention and SwiGLU; its spec has the details.

Invariant: `forward` only enqueues work: it reads nothing back from the device, and everything it
uses besides its arguments has a fixed address, so that a step can be captured. One layer is four
products with the neighbouring operations fused in, and attention, preceded by the cache write:

    residual -> norm, qkv, biases -> q/k norm, rotation, cache write, attention -> o, + residual
             -> norm, gate and up, silu * -> down, + residual
"""

import contextlib
import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from quire.engine.model.base import CausalModel
from quire.engine.model.config import ModelConfig
from quire.engine.model.forward_batch import ForwardBatch, KVCache
from quire.engine.model.layers.build_context import BuildContext
from quire.engine.model.layers.embedding import VocabTable
from quire.engine.model.layers.mlp import DenseMlp, ExpertsMlp
from quire.engine.model.layers.parallel import length
from quire.engine.model.layers.placement import Placement, whole
from quire.engine.model.layers.residual import ResidualStream
from quire.engine.model.layers.rotary import cos_sin_table
from quire.engine.model.layers.self_attention import SelfAttention
from quire.engine.model.product import Product
from quire.engine.model.spec import AttentionSpec
from quire.kernels.linear.row_launch import Room, RowUnavailable, Sizes
from quire.kernels.ops import RowOps, has_row
from quire.kernels.weight import RowWeights, Weight

_FREQUENCIES = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")  # in old files


class DecoderLayer:
    """One decoder layer. Its weights are this rank's share."""

    def __init__(
        self, context: BuildContext, config: ModelConfig, spec: AttentionSpec, index: int
    ) -> None:
        self._eps = config.rms_norm_eps
        hidden, name = config.hidden_size, f"model.layers.{index}"
        self.input_norm, self.post_norm = context.new(hidden), context.new(hidden)
        window = config.window_of(index) or 0
        self.attention = SelfAttention(context, f"{name}.self_attn", config, spec, window)
        experts = config.experts_of(index)
        self.mlp = (
            DenseMlp(context, f"{name}.mlp", hidden, config.intermediate_size, merged=spec.merged)
            if experts is None
            else ExpertsMlp(context, f"{name}.mlp", hidden, experts)
        )
        self.placements: list[Placement] = [
            whole(f"{name}.input_layernorm.weight", self.input_norm),
            *self.attention.placements,
            whole(f"{name}.post_attention_layernorm.weight", self.post_norm),
            *self.mlp.placements,
        ]

    @property
    def kind(self) -> tuple[object, ...]:
        """What determines its kernels: its window, and the shapes and formats of its weights."""
        weights = tuple((type(p.target), p.shape, p.nbytes) for p in self.placements)
        return self.attention.window, weights

    def products(self) -> list[Product]:
        attention = self.attention
        return [attention.qkv.product(), attention.o.product(), *self.mlp.products()]

    def __call__(
        self,
        stream: ResidualStream,
        then: Tensor,
        batch: ForwardBatch,
        k_cache: Tensor,
        v_cache: Tensor,
        rope: Tensor,
    ) -> ResidualStream:
        """stream: [T, H]; then: [H], the norm weight that follows this layer; caches: [num_blocks,
        Hkv, block_size, D] -> [T, H]."""
        norms = self.input_norm, self.post_norm
        stream = self.attention(stream, *norms, batch, k_cache, v_cache, rope)
        return self.mlp(stream, self.post_norm, then, self._eps)

    def up_to(self, following: "DecoderLayer | None") -> RowWeights | None:
        """Its weights from attention to the next layer's, where one row may go that way as one
        operation: where they are dense, not quantized, and without biases."""
        attention, mlp = self.attention, self.mlp
        if not isinstance(mlp, DenseMlp):
            return None
        if following and following.attention.qkv.bias is not None:
            return None
        matrices = [attention.o.weight, mlp.gate_up.weight, mlp.down.weight]
        matrices += [following.attention.qkv.weight] if following else []
        if any(one.scale is not None for one in matrices):
            return None
        o, gate_up, down, *qkv = (one.data for one in matrices)
        then = (following.input_norm, *qkv) if following else ()
        return RowWeights(o, self.post_norm, gate_up, down, *then)


_Placed = tuple[DecoderLayer, tuple[ForwardBatch, Tensor, Tensor]]  # with its keys and values


class _RowPath(NamedTuple):
    """What a row needs where the products between two attentions are one operation."""

    ops: RowOps
    weights: list[RowWeights]
    rooms: list[Room]


class Decoder(CausalModel):
    """The whole model on one rank."""

    def __init__(self, context: BuildContext, config: ModelConfig, spec: AttentionSpec) -> None:
        kv_heads = context.world.split_kv_heads(config.num_kv_heads, "num_key_value_heads")
        super().__init__(config, context.dtype, context.device, length(kv_heads))
        self._ops = context.ops
        self._spec = spec
        self._alone = context.world.size == 1
        size = config.vocab_size, config.hidden_size
        self.embedding = VocabTable(context, "model.embed_tokens", *size)
        self.layers = [
            DecoderLayer(context, config, spec, index) for index in range(config.num_layers)
        ]
        self.norm = context.new(config.hidden_size)
        self.head = self.embedding
        if not config.tie_word_embeddings:
            self.head = VocabTable(context, "lm_head", *size)
        self.rope = cos_sin_table(
            config.head_dim,
            config.max_position_embeddings,
            config.rope_theta,
            config.rope_scaling,
            context.device,
        )

    @property
    def qk_norm(self) -> bool:
        return self._spec.qk_norm

    @property
    def embedding_weight(self) -> str:
        return f"{self.embedding.module}.weight"

    def is_buffer(self, name: str) -> bool:
        return _FREQUENCIES.fullmatch(name) is not None  # the configuration tells them

    def placements(self) -> list[Placement]:
        placements = list(self.embedding.placements)
        for layer in self.layers:
            placements.extend(layer.placements)
        placements.append(whole("model.norm.weight", self.norm))
        if self.head is not self.embedding:
            placements.extend(self.head.placements)
        return placements

    def products(self) -> list[Product]:
        head = Product(
            self.head.module,
            Weight(self.head.weight),
            norm=True,
            out_dtype=torch.float32,
            sampled=True,
        )
        return [one for layer in self.layers for one in layer.products()] + [head]

    def distinct_layers(self) -> list[int]:
        found: dict[object, int] = {}
        for index, layer in enumerate(self.layers):
            found.setdefault(layer.kind, index)
        return list(found.values())

    def forward(
        self, batch: ForwardBatch, kv: KVCache, layers: Sequence[int] | None = None
    ) -> Tensor:
        every = list(zip(self.layers, kv.by_layer(batch, self.config.full_layers), strict=True))
        chosen = every if layers is None else [every[index] for index in layers]
        first, *rest = (*(layer.input_norm for layer, _ in chosen), self.norm)
        row = self._row_path([layer for layer, _ in chosen]) if len(batch.token_ids) == 1 else None
        stream = self.embedding.embed(batch.token_ids, first, self.config.rms_norm_eps)
        if row is not None:
            with contextlib.suppress(RowUnavailable):  # said where that was found
                return self._one_row(row, stream, chosen)
        for (layer, (its, k, v)), then in zip(chosen, rest, strict=True):
            stream = layer(stream, then, its, k, v, self.rope)
        return stream.residual

    def _row_path(self, layers: list[DecoderLayer]) -> _RowPath | None:
        """How one row goes through layers with one operation from attention to attention; or None.
        To be asked before anything is launched."""
        ops, weights = self._ops, []
        if not self._alone or not has_row(ops):
            return None
        for layer, following in zip_longest(layers, layers[1:]):
            between = layer.up_to(following)
            if between is None:
                return None
            weights.append(between)
        rooms = ops.row_rooms(len(weights), Sizes.of(weights[0]), self.dtype, self.device)
        return None if rooms is None else _RowPath(ops, weights, rooms)

    def _one_row(self, row: _RowPath, stream: ResidualStream, layers: list[_Placed]) -> Tensor:
        """stream: [1, H] -> [1, H]"""
        eps, hidden = self.config.rms_norm_eps, stream.residual
        qkv: Tensor | None = layers[0][0].attention.qkv(stream, layers[0][0].input_norm, eps)
        for (layer, (its, k, v)), weights, room in zip(layers, row.weights, row.rooms, strict=True):
            assert qkv is not None
            attended = layer.attention.attend(qkv, its, k, v, self.rope)
            assert isinstance(attended, Tensor)
            hidden, qkv = row.ops.between_attentions(attended, hidden, weights, eps, room)
        return hidden

    def logits(self, hidden: Tensor, rows: Tensor | None, part: bool = False) -> Tensor:
        if rows is not None:
            hidden = hidden[rows]
        return self.head.logits(self._ops, hidden, self.norm, self.config.rms_norm_eps, part)

    def states(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        mean = wide.square().mean(-1, keepdim=True)
        return wide * (mean + self.config.rms_norm_eps).rsqrt() * self.norm.float()
