"""The operations of a CPU: the twins, with products of their own where those can be had."""

import ctypes
import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from quire.kernels import reference
from quire.kernels.cpu.attention import Attention
from quire.kernels.cpu.library import LibraryUnavailable, cache_directory, load, machine_level
from quire.kernels.cpu.products import Products
from quire.kernels.row_scaled import RowScaled

log = logging.getLogger(__name__)


class CpuOps:
    """An `Ops`: products, experts and attention of one-token rows compiled, all else the twins'."""

    def __init__(self, library: ctypes.CDLL, level: str) -> None:
        self.level = level
        self.products = Products(library)
        self.attention = Attention(library)

    @staticmethod
    def of_this_machine() -> "CpuOps":
        """Of the best level that there is. Raises LibraryUnavailable, saying why there is none."""
        level = machine_level()
        return CpuOps(load(level, cache_directory()), level)

    def __getattr__(self, name: str) -> Any:
        if name not in reference.__all__:
            raise AttributeError(name)
        return getattr(reference, name)

    def linear(
        self,
        x: Tensor,
        weight: Tensor | RowScaled,
        *,
        norm_weight: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
        silu: bool = False,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """As in `reference`, but that a result in out_dtype is rounded to it alone: logits keep
        the sums' fp32, where the twin rounds those of bf16 weights to bf16 first."""
        data, scale = _parts(weight)
        around: dict[str, Any] = {
            "norm_weight": norm_weight,
            "eps": eps,
            "residual": residual,
            "silu": silu,
        }
        if not self.products.takes(x, data):
            return reference.linear(x, weight, out_dtype=out_dtype, **around)
        bare = not silu and residual is None
        dtype = out_dtype if bare and out_dtype is not None else x.dtype
        y = self.products(x, data, scale, dtype, **around)
        return y if out_dtype is None else y.to(out_dtype)

    def mix_experts(
        self,
        x: Tensor,
        gate_up: Tensor,
        down: Tensor,
        experts: Tensor,
        weights: Tensor,
        *,
        residual: Tensor | None = None,
    ) -> Tensor:
        """As in `reference`, by these products."""
        return reference.mix_experts(
            x, gate_up, down, experts, weights, residual=residual, product=self.linear
        )

    # ------------------------------------------------------------ attention

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
        arguments = (qkv, q_norm, k_norm, eps, cos_sin, positions, slot_mapping, k_cache, v_cache)
        if self._attends(qkv, k_cache):
            return self.attention.write(*arguments)
        return reference.qk_norm_rope_kv_write(*arguments)

    def rope_kv_write(
        self,
        qkv: Tensor,
        cos_sin: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> Tensor:
        arguments = (cos_sin, positions, slot_mapping, k_cache, v_cache)
        if self._attends(qkv, k_cache):
            return self.attention.write(qkv, None, None, 0.0, *arguments)
        return reference.rope_kv_write(qkv, *arguments)

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
        arguments = (q, k_cache, v_cache, block_tables, context_lens, scale)
        if not window and self.attention.takes(q, k_cache, q.shape[1]):
            return self.attention.decode(*arguments, out=out)
        return reference.decode_attention(*arguments, max_context_len, out=out, window=window)

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
    ) -> Tensor:
        del narrow
        q = self.qk_norm_rope_kv_write(
            qkv, q_norm, k_norm, eps, cos_sin, positions, slot_mapping, k_cache, v_cache
        )
        return self.decode_attention(
            q, k_cache, v_cache, block_tables, context_lens, scale, max_context_len, out=out
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
        """The twin's; a row of one token gets the bits that decode_attention would give it."""
        caches = (k_cache, v_cache)
        out = reference.prefill_attention(
            *(q, *caches, block_tables, query_start_loc, context_lens, scale),
            *(max_query_len, max_context_len),
            out=out,
            window=window,
        )
        if window:  # of which one token has the twin's bits anyway
            return out
        alone = (query_start_loc.diff() == 1).nonzero().flatten()
        if alone.numel():
            tokens = query_start_loc[alone].long()
            out[tokens] = self.decode_attention(
                *(q[tokens], *caches, block_tables[alone], context_lens[alone], scale),
                max_context_len,
            )
        return out

    def _attends(self, qkv: Tensor, k_cache: Tensor) -> bool:
        _, kv_heads, _, dim = k_cache.shape
        return self.attention.takes(qkv, k_cache, qkv.shape[1] // dim - 2 * kv_heads)


def _parts(weight: Tensor | RowScaled) -> tuple[Tensor, Tensor | None]:
    """The numbers of a weight, and the scales of its rows if it has them."""
    if isinstance(weight, RowScaled):
        return weight.data, weight.scale
    return weight, None


@cache
def own_ops() -> CpuOps | None:
    """The compiled operations of this machine; None, said once in the log, if it has none."""
    try:
        ops = CpuOps.of_this_machine()
    except LibraryUnavailable as error:
        log.warning("products on the CPU are PyTorch's, which are slower: %s", error)
        return None
    threads = torch.get_num_threads()
    log.info("products on the CPU: compiled for %s, %d threads", ops.level, threads)
    return ops
