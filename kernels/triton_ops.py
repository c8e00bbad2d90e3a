"""The Triton kernels as one `Ops`, with the workspace that they share.

Invariant: every method launches kernels on the current stream and reads nothing back, so any
sequence of them can be captured in a graph. Grids follow from shapes and host integers alone.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from quire.kernels import (
    reference,
    steady_keys,  # noqa: F401 (before any kernel is named)
)
from quire.kernels.attention import (
    decode,
    exact_prefill,
    kv_write,
    prefill,
    qk_norm_rope,
)
from quire.kernels.experts.triton_ops import ExpertTritonOps
from quire.kernels.linear import (
    all_reduce_norm,
    fp8_linear,
    layer_norm,
    linear,
    norms,
    skinny,
    tuning,
)
from quire.kernels.linear.exact import ExactProducts
from quire.kernels.linear.row_ops import RowTritonOps
from quire.kernels.sampling import filtering, logprobs, sampling
from quire.kernels.state import copy_blocks, state
from quire.kernels.weight import Quantized, Weight


@dataclass(frozen=True)
class TritonOps(ExpertTritonOps, RowTritonOps):
    """Implements `ops.Fp8ExpertOps` and `ops.RowOps`. counters: the workspace of split products and
    of split attention, zeros between launches. products: in exact mode what chooses theirs, while
    it is on."""

    counters: Tensor
    pdl: bool = False
    products: ExactProducts | None = None

    @classmethod
    def on(cls, device: torch.device, *, pdl: bool = False, exact: bool = False) -> Self:
        """The operations on one device, with a workspace of their own. exact: a row's results have
        the same bits whatever rows stand beside it, and however a prompt is cut."""
        products = ExactProducts() if exact else None
        return cls(counters=skinny.new_counters(device), pdl=pdl, products=products)

    @property
    def exact(self) -> bool:
        """Whether a row's bits are its own."""
        return self.products is not None and self.products.on

    # ------------------------------------------------------------ norms, products, activations

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norms.rms_norm(x, weight, eps, pdl=self.pdl)

    def silu_mul(self, x: Tensor) -> Tensor:
        return norms.silu_mul(x, pdl=self.pdl)

    def layer_norm(
        self, x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, add: Tensor | None = None
    ) -> Tensor:
        return layer_norm.layer_norm(x, weight, bias, eps, add=add, pdl=self.pdl)

    def gelu_new(self, x: Tensor, bias: Tensor) -> Tensor:
        return layer_norm.gelu_new(x, bias, pdl=self.pdl)

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        *,
        norm_weight: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
        silu: bool = False,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        return linear.linear(
            x,
            weight,
            norm_weight=norm_weight,
            eps=eps,
            residual=residual,
            silu=silu,
            out_dtype=out_dtype,
            counters=self.counters,
            pdl=self.pdl and (self.exact or tuning.chains(weight, x.shape[0])),
            exact=self.products if self.exact else None,
        )

    def residual_norm(
        self,
        partial: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        eps: float,
        mail: all_reduce_norm.Mail,
    ) -> tuple[Tensor, Tensor]:
        return all_reduce_norm.residual_norm(partial, residual, weight, eps, mail, pdl=self.pdl)

    # ------------------------------------------------------------ FP8 weights

    def linear_fp8(
        self,
        x: Tensor | Quantized,
        weight: Weight,
        *,
        norm_weight: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
        silu: bool = False,
        out_dtype: torch.dtype | None = None,
        narrow: bool = False,
    ) -> Tensor | Quantized:
        return fp8_linear.linear_fp8(
            x,
            weight,
            norm_weight=norm_weight,
            eps=eps,
            residual=residual,
            silu=silu,
            out_dtype=out_dtype,
            counters=self.counters,
            narrow=narrow,
            pdl=self.pdl and tuning.chains(weight.data, x.data.shape[0]),
            exact=self.exact,
        )

    # ------------------------------------------------------------ cache and attention

    def qk_norm_rope_kv_write(
        self,
        qkv: Tensor,
        q_norm: Tensor,
        k_norm: Tensor,
        eps: float,
        cos_sin: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> Tensor:
        return qk_norm_rope.qk_norm_rope_kv_write(
            *(qkv, q_norm, k_norm, eps, cos_sin, positions, slot_mapping, k_cache, v_cache),
            pdl=self.pdl,
        )

    def rope_kv_write(
        self,
        qkv: Tensor,
        cos_sin: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> Tensor:
        return reference.rope_kv_write(qkv, cos_sin, positions, slot_mapping, k_cache, v_cache)

    def kv_write(
        self, qkv: Tensor, bias: Tensor, slot_mapping: Tensor, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor:
        return kv_write.kv_write(qkv, bias, slot_mapping, k_cache, v_cache, pdl=self.pdl)

    def decode_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
        scale: float,
        max_context_len: int,
        *,
        out: Tensor | None = None,
        window: int = 0,
    ) -> Tensor:
        return decode.decode_attention(
            q,
            k_cache,
            v_cache,
            block_tables,
            context_lens,
            scale,
            max_context_len,
            out=out,
            window=window,
            counters=self.counters,
            exact=self.exact,
            pdl=self.pdl,
        )

    def rope_decode_attention(
        self,
        qkv: Tensor,
        q_norm: Tensor,
        k_norm: Tensor,
        eps: float,
        cos_sin: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
        scale: float,
        max_context_len: int,
        *,
        out: Tensor | None = None,
        narrow: bool = False,
    ) -> Tensor | Quantized:
        return decode.rope_decode_attention(
            *(qkv, q_norm, k_norm, eps, cos_sin, positions, slot_mapping, k_cache, v_cache),
            *(block_tables, context_lens, scale, max_context_len),
            out=out,
            narrow=narrow,
            counters=self.counters,
            exact=self.exact,
            pdl=self.pdl,
        )

    def prefill_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        query_start_loc: Tensor,
        context_lens: Tensor,
        scale: float,
        max_query_len: int,
        max_context_len: int,
        *,
        out: Tensor | None = None,
        window: int = 0,
    ) -> Tensor:
        attend = exact_prefill.prefill_attention if self.exact else prefill.prefill_attention
        where = q, k_cache, v_cache, block_tables, query_start_loc, context_lens
        sizes = scale, max_query_len, max_context_len
        return attend(*where, *sizes, out=out, window=window, pdl=self.pdl)

    def copy_blocks(self, k_cache: Tensor, v_cache: Tensor, source: Tensor, target: Tensor) -> None:
        copy_blocks.copy_blocks(k_cache, v_cache, source, target, pdl=self.pdl)

    # ------------------------------------------------------------ sampling

    def apply_penalties(
        self,
        logits: Tensor,
        slots: Tensor,
        prompt_mask: Tensor,
        output_counts: Tensor,
        repetition: Tensor,
        presence: Tensor,
        frequency: Tensor,
    ) -> None:
        sampling.apply_penalties(
            logits,
            slots,
            prompt_mask,
            output_counts,
            repetition,
            presence,
            frequency,
            pdl=self.pdl,
        )

    def mask_stop_tokens(
        self,
        logits: Tensor,
        slots: Tensor,
        positions: Tensor,
        stop_ids: Tensor,
        min_position: Tensor,
    ) -> None:
        sampling.mask_stop_tokens(logits, slots, positions, stop_ids, min_position, pdl=self.pdl)

    def add_bias(self, logits: Tensor, rows: Tensor, ids: Tensor, values: Tensor) -> None:
        reference.add_bias(logits, rows, ids, values)

    def keep_allowed(self, logits: Tensor, mask_of: Tensor, masks: Tensor) -> None:
        sampling.keep_allowed(logits, mask_of, masks, pdl=self.pdl)

    def filter_logits(
        self,
        logits: Tensor,
        slots: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
    ) -> None:
        filtering.filter_logits(logits, slots, temperature, top_k, top_p, min_p, pdl=self.pdl)

    def sample(
        self, logits: Tensor, slots: Tensor, positions: Tensor, temperature: Tensor, seeds: Tensor
    ) -> Tensor:
        return sampling.sample(logits, slots, positions, temperature, seeds, pdl=self.pdl)

    def greedy(self, logits: Tensor) -> Tensor:
        return sampling.greedy(logits, pdl=self.pdl)

    def best_of_part(
        self, logits: Tensor, first: int, noise: sampling.Noise | None = None
    ) -> Tensor:
        return sampling.best_of_part(logits, first, noise, pdl=self.pdl)

    def best_of_parts(self, best: Tensor) -> Tensor:
        return sampling.best_of_parts(best, pdl=self.pdl)

    def logprobs(
        self, logits: Tensor, tokens: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        chosen = logprobs.by_row if self.exact else reference.logprobs
        return chosen(logits, tokens, count)

    # ------------------------------------------------------------ state on the device

    def prepare_decode(
        self,
        row_slots: Tensor,
        last_token: Tensor,
        num_computed: Tensor,
        slot_tables: Tensor,
        block_size: int,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        context_lens: Tensor,
        block_tables: Tensor,
    ) -> None:
        state.prepare_decode(
            *(row_slots, last_token, num_computed, slot_tables, block_size),
            *(token_ids, positions, slot_mapping, context_lens, block_tables),
            pdl=self.pdl,
        )

    def prepare_mixed(
        self,
        row_slots: Tensor,
        query_start_loc: Tensor,
        num_computed: Tensor,
        last_token: Tensor,
        slot_tables: Tensor,
        block_size: int,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        context_lens: Tensor,
        block_tables: Tensor,
    ) -> None:
        state.prepare_mixed(
            *(row_slots, query_start_loc, num_computed, last_token, slot_tables, block_size),
            *(token_ids, positions, slot_mapping, context_lens, block_tables),
            pdl=self.pdl,
        )

    def advance(
        self,
        row_slots: Tensor,
        query_lens: Tensor | None,
        num_computed: Tensor,
        sampled_rows: Tensor | None,
        tokens: Tensor,
        last_token: Tensor,
        output_counts: Tensor | None,
    ) -> None:
        state.advance(
            row_slots,
            query_lens,
            num_computed,
            sampled_rows,
            tokens,
            last_token,
            output_counts,
            pdl=self.pdl,
        )
