"""A pre-norm decoder with RMSNorm, grouped-query attention and SwiGLU, as its spec says in detail.

Invariant: `forward` only enqueues work: it reads nothing back from the device, and all it touches
beside its arguments has a fixed address, so that a step can be captured. One layer is four products
with what stands around them fused in, and attention, with the write of keys and values before it:

    residual -> norm, qkv, biases -> q/k norm, rotation, cache write, attention -> o, + residual
             -> norm, gate and up, silu * -> down, + residual
"""

import torch
from torch import Tensor

from quire.engine.model.base import CausalModel
from quire.engine.model.config import ModelConfig
from quire.engine.model.forward_batch import ForwardBatch, KVCache
from quire.engine.model.layers.attention import paged_attention
from quire.engine.model.layers.embedding import VocabTable
from quire.engine.model.layers.linear import ColumnParallelLinear, Part, RowParallelLinear
from quire.engine.model.layers.parallel import World, length, scale_slice
from quire.engine.model.layers.placement import Placement, new_weight, whole
from quire.engine.model.layers.rotary import cos_sin_table
from quire.engine.model.spec import AttentionSpec
from quire.kernels.ops import Ops


class DecoderLayer:
    """One decoder layer. Its weights are this rank's share."""

    def __init__(
        self,
        config: ModelConfig,
        spec: AttentionSpec,
        index: int,
        ops: Ops,
        *,
        dtype: torch.dtype,
        device: torch.device,
        world: World,
    ) -> None:
        self._ops = ops
        self._eps = config.rms_norm_eps
        self._scale = config.head_dim**-0.5
        hidden, dim = config.hidden_size, config.head_dim
        prefix = f"model.layers.{index}."

        def norm(size: int) -> Tensor:
            return new_weight(size, dtype=dtype, device=device)

        self.input_norm, self.post_norm = norm(hidden), norm(hidden)
        self.q_norm, self.k_norm = (norm(dim) if spec.qk_norm else None for _ in range(2))
        heads = world.split(config.num_q_heads, "num_attention_heads")
        q_rows = scale_slice(heads, dim)
        kv_heads = world.split_kv_heads(config.num_kv_heads, "num_key_value_heads")
        kv_rows = scale_slice(kv_heads, dim)
        parts = [
            Part(prefix + "self_attn.q_proj", config.num_q_heads * dim, q_rows),
            Part(prefix + "self_attn.k_proj", config.num_kv_heads * dim, kv_rows),
            Part(prefix + "self_attn.v_proj", config.num_kv_heads * dim, kv_rows),
        ]
        self.qkv = ColumnParallelLinear(
            ops, parts, hidden, bias=spec.qkv_bias, dtype=dtype, device=device
        )
        self.o = RowParallelLinear(
            ops,
            world,
            prefix + "self_attn.o_proj.weight",
            hidden,
            config.num_q_heads * dim,
            q_rows,
            dtype=dtype,
            device=device,
        )
        inner = world.split(config.intermediate_size, "intermediate_size")
        parts = [
            Part(prefix + f"mlp.{name}_proj", config.intermediate_size, inner)
            for name in ("gate", "up")
        ]
        self.gate_up = ColumnParallelLinear(ops, parts, hidden, dtype=dtype, device=device)
        self.down = RowParallelLinear(
            ops,
            world,
            prefix + "mlp.down_proj.weight",
            hidden,
            config.intermediate_size,
            inner,
            dtype=dtype,
            device=device,
        )
        head_norms = [
            whole(prefix + f"self_attn.{name}_norm.weight", weight)
            for name, weight in (("q", self.q_norm), ("k", self.k_norm))
            if weight is not None
        ]
        self.placements: list[Placement] = [
            whole(prefix + "input_layernorm.weight", self.input_norm),
            *self.qkv.placements,
            *head_norms,
            *self.o.placements,
            whole(prefix + "post_attention_layernorm.weight", self.post_norm),
            *self.gate_up.placements,
            *self.down.placements,
        ]

    def __call__(
        self, residual: Tensor, batch: ForwardBatch, k_cache: Tensor, v_cache: Tensor, rope: Tensor
    ) -> Tensor:
        """residual: [T, H]; caches: [num_blocks, Hkv, block_size, D] -> [T, H]."""
        qkv = self.qkv(residual, self.input_norm, self._eps)
        attended = paged_attention(
            self._ops,
            qkv,
            self.q_norm,
            self.k_norm,
            self._eps,
            rope,
            k_cache,
            v_cache,
            batch,
            self._scale,
        )
        residual = self.o(attended, residual)
        activated = self.gate_up(residual, self.post_norm, self._eps, silu=True)
        return self.down(activated, residual)


class Decoder(CausalModel):
    """The whole model on one rank."""

    def __init__(
        self,
        config: ModelConfig,
        spec: AttentionSpec,
        ops: Ops,
        *,
        dtype: torch.dtype,
        device: torch.device,
        world: World,
    ) -> None:
        kv_heads = world.split_kv_heads(config.num_kv_heads, "num_key_value_heads")
        super().__init__(config, dtype, device, length(kv_heads))
        self._ops = ops
        self._spec = spec
        size = config.vocab_size, config.hidden_size
        self.embedding = VocabTable(
            world, "model.embed_tokens.weight", *size, dtype=dtype, device=device
        )
        self.layers = [
            DecoderLayer(config, spec, index, ops, dtype=dtype, device=device, world=world)
            for index in range(config.num_layers)
        ]
        self.norm = new_weight(config.hidden_size, dtype=dtype, device=device)
        self.head = self.embedding
        if not config.tie_word_embeddings:
            self.head = VocabTable(world, "lm_head.weight", *size, dtype=dtype, device=device)
        self.rope = cos_sin_table(
            config.head_dim,
            config.max_position_embeddings,
            config.rope_theta,
            config.rope_scaling,
            device,
        )

    @property
    def qk_norm(self) -> bool:
        return self._spec.qk_norm

    def placements(self) -> list[Placement]:
        placements = list(self.embedding.placements)
        for layer in self.layers:
            placements.extend(layer.placements)
        placements.append(whole("model.norm.weight", self.norm))
        if self.head is not self.embedding:
            placements.extend(self.head.placements)
        return placements

    def forward(self, batch: ForwardBatch, kv: KVCache) -> Tensor:
        residual = self.embedding.embed(batch.token_ids)
        for layer, k, v in zip(self.layers, kv.k.unbind(), kv.v.unbind(), strict=True):
            residual = layer(residual, batch, k, v, self.rope)
        return residual

    def logits(self, hidden: Tensor, rows: Tensor | None) -> Tensor:
        if rows is not None:
            hidden = hidden[rows]
        return self.head.logits(self._ops, hidden, self.norm, self.config.rms_norm_eps)
