"""Grouped-query attention of one layer: products, norms of heads, and the cache."""

from torch import Tensor

from quire.engine.model.config import ModelConfig
from quire.engine.model.forward_batch import ForwardBatch
from quire.engine.model.layers.attention import paged_attention
from quire.engine.model.layers.build_context import BuildContext
from quire.engine.model.layers.linear import (
    ColumnParallelLinear,
    Part,
    RowParallelLinear,
    stored_as_one,
)
from quire.engine.model.layers.parallel import scale_slice
from quire.engine.model.layers.placement import Placement, whole
from quire.engine.model.layers.residual import ResidualStream
from quire.engine.model.spec import AttentionSpec
from quire.kernels.weight import Quantized


class SelfAttention:
    """This rank's heads of a layer. module: its name in the checkpoint."""

    def __init__(
        self,
        context: BuildContext,
        module: str,
        config: ModelConfig,
        spec: AttentionSpec,
        window: int,
    ) -> None:
        """window: tokens that each sees, itself among them; 0: all."""
        self._ops = context.ops
        self._eps = config.rms_norm_eps
        self._scale = config.head_dim**-0.5
        self.window = window
        hidden, dim = config.hidden_size, config.head_dim
        q_heads, kv_heads = config.num_q_heads, config.num_kv_heads
        q_rows = scale_slice(context.world.split(q_heads, "num_attention_heads"), dim)
        kv_rows = scale_slice(context.world.split_kv_heads(kv_heads, "num_key_value_heads"), dim)
        q, kv = (q_heads * dim, q_rows), (kv_heads * dim, kv_rows)
        parts = [
            Part(f"{module}.q_proj", *q),
            Part(f"{module}.k_proj", *kv),
            Part(f"{module}.v_proj", *kv),
        ]
        if spec.merged:
            parts = stored_as_one(f"{module}.qkv_proj", (q, kv, kv))
        self.qkv = ColumnParallelLinear(context, parts, hidden, bias=spec.qkv_bias)
        self.o = RowParallelLinear(context, f"{module}.o_proj", hidden, q_heads * dim, q_rows)
        self._narrow = self.o.weight.is_fp8
        self.q_norm = context.new(dim) if spec.qk_norm else None
        self.k_norm = context.new(dim) if spec.qk_norm else None
        self.placements: list[Placement] = list(self.qkv.placements)
        for name, norm in (("q_norm", self.q_norm), ("k_norm", self.k_norm)):
            if norm is not None:
                self.placements.append(whole(f"{module}.{name}.weight", norm))
        self.placements += self.o.placements

    def __call__(
        self,
        stream: ResidualStream,
        norm: Tensor,
        then: Tensor,
        batch: ForwardBatch,
        k_cache: Tensor,
        v_cache: Tensor,
        rope: Tensor,
    ) -> ResidualStream:
        """stream: [T, H], whose storage may be reused; norm: [H], of what comes in; then: [H], of
        what comes next; caches: [num_blocks, Hkv, block_size, D]; rope: [positions, D] -> the
        residual with what attention made, [T, H]."""
        qkv = self.qkv(stream, norm, self._eps)
        attended = self.attend(qkv, batch, k_cache, v_cache, rope)
        return self.o(attended, stream.residual, then, self._eps)

    def attend(
        self, qkv: Tensor, batch: ForwardBatch, k_cache: Tensor, v_cache: Tensor, rope: Tensor
    ) -> Tensor | Quantized:
        """qkv: [T, (Hq + 2 * Hkv) * D] -> what `o` takes, [T, Hq * D]. The rest as above."""
        return paged_attention(
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
            self.window,
            narrow=self._narrow,
        )
