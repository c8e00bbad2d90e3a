"""Calls the compiled attention of one-token rows, and the compiled write to the cache before it.

Invariant: a row's result depends on its own numbers and its context alone, bit for bit. Keys and
values are float32, as they always are on a CPU.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from quire.kernels.cpu.products import address, parallel, threads

_KINDS = {torch.bfloat16: 0, torch.float32: 2}
_DIMENSIONS = 16  # head_dim is a multiple of this
_MAX_DIM, _MAX_GROUP = 256, 16
_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_float
_WRITE = (
    *(_POINTER, _INT, _POINTER, _INT, _POINTER, _POINTER, _FLOAT, _POINTER, _POINTER, _POINTER),
    *(_POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG, _LONG, _LONG),
)
_ATTEND = (
    *(_POINTER, _INT, _POINTER, _INT, _POINTER, _POINTER, _POINTER, _LONG, _POINTER, _FLOAT),
    *(_POINTER, _LONG, _LONG, _LONG, _LONG, _LONG),
)


class Attention:
    """Attention of one-token rows by a compiled library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._write: Any = library.quire_write
        self._write.argtypes, self._write.restype = _WRITE, None
        self._attend: Any = library.quire_attend
        self._attend.argtypes, self._attend.restype = _ATTEND, None
        self._parallel = parallel()

    def takes(self, heads: Tensor, k_cache: Tensor, q_heads: int) -> bool:
        """Whether it computes such heads, of bf16 or float32, over such a cache."""
        _, kv_heads, _, dim = k_cache.shape
        return (
            heads.dtype in _KINDS
            and k_cache.dtype == torch.float32
            and not k_cache.is_cuda
            and dim % _DIMENSIONS == 0
            and dim <= _MAX_DIM
            and q_heads // kv_heads <= _MAX_GROUP
        )

    def write(
        self,
        qkv: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        cos_sin: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> Tensor:
        """Like `qk_norm_rope_kv_write`, or without norms like `rope_kv_write`."""
        _, kv_heads, block_size, dim = k_cache.shape
        qkv, positions, slots = qkv.contiguous(), positions.long(), slot_mapping.long()
        tokens, q_heads = qkv.shape[0], qkv.shape[1] // dim - 2 * kv_heads
        q = torch.empty(tokens, q_heads, dim, dtype=qkv.dtype)
        self._write(
            *threads(self._parallel),
            *(qkv.data_ptr(), _KINDS[qkv.dtype], address(q_norm), address(k_norm), eps),
            *(cos_sin.data_ptr(), positions.data_ptr(), slots.data_ptr()),
            *(k_cache.data_ptr(), v_cache.data_ptr(), q.data_ptr()),
            *(tokens, q_heads, kv_heads, dim, block_size),
        )
        return q

    def decode(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
        scale: float,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Like `decode_attention`."""
        rows, q_heads, dim = q.shape
        _, kv_heads, block_size, _ = k_cache.shape
        q, tables, contexts = q.contiguous(), block_tables.int(), context_lens.int()
        tables = tables if tables.stride(-1) == 1 else tables.contiguous()
        out = torch.empty_like(q) if out is None else out
        self._attend(
            *threads(self._parallel),
            *(q.data_ptr(), _KINDS[q.dtype], k_cache.data_ptr(), v_cache.data_ptr()),
            *(tables.data_ptr(), tables.stride(0), contexts.data_ptr(), scale),
            *(out.data_ptr(), rows, q_heads, kv_heads, dim, block_size),
        )
        return out
