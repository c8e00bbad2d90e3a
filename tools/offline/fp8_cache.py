"""Calls of the attention kernels over a cache of e4m3."""

from collections.abc import Callable
from typing import Any

import torch

from offline.compiling import Calls, cases, empty

_INT, _BF16 = torch.int32, torch.bfloat16


def _cache(block_size: int, dim: int) -> Any:
    return empty(64, 8, block_size, dim, dtype=torch.float8_e4m3fn)


def _rope_decode(
    rows: int, group: int, dim: int, block_size: int, dtype: torch.dtype = _BF16, **launch: Any
) -> Callable[[], object]:
    def call() -> object:
        from quire.kernels.attention.decode import rope_decode_attention

        cache, norm = _cache(block_size, dim), empty(dim, dtype=dtype)
        qkv = empty(rows, (8 * group + 16) * dim, dtype=dtype)
        angles = empty(4096, dim, dtype=torch.float32)
        ints, slots = empty(rows, dtype=_INT), empty(rows, dtype=torch.int64)
        table = empty(rows, 64, dtype=_INT)
        return rope_decode_attention(
            qkv, norm, norm, 1e-6, angles, ints, slots, cache, cache, table, ints, 0.1, 4096,
            **launch,
        )  # fmt: skip

    return call


def _decode(
    rows: int, group: int, dim: int, block_size: int, dtype: torch.dtype = _BF16, **launch: Any
) -> Callable[[], object]:
    def call() -> object:
        from quire.kernels.attention.decode import decode_attention

        cache, q = _cache(block_size, dim), empty(rows, 8 * group, dim, dtype=dtype)
        table, context = empty(rows, 64, dtype=_INT), empty(rows, dtype=_INT)
        return decode_attention(q, cache, cache, table, context, 0.1, 4096, **launch)

    return call


def _prefill(
    tokens: int, group: int, dim: int, block_size: int, dtype: torch.dtype = _BF16,
    *, exact: bool = False, cached: int = 0, **launch: Any,
) -> Callable[[], object]:  # fmt: skip
    def call() -> object:
        from quire.kernels.attention import exact_prefill, prefill

        attend = (exact_prefill if exact else prefill).prefill_attention
        cache, q = _cache(block_size, dim), empty(tokens, 8 * group, dim, dtype=dtype)
        table, starts = empty(4, 64, dtype=_INT), empty(5, dtype=_INT)
        context, longest = empty(4, dtype=_INT), tokens - 3
        sizes = (0.1, longest, cached + longest)
        return attend(q, cache, cache, table, starts, context, *sizes, **launch)

    return call


def _write(tokens: int, dim: int, dtype: torch.dtype = _BF16) -> Callable[[], object]:
    def call() -> object:
        from quire.kernels.attention.qk_norm_rope import qk_norm_rope_kv_write

        cache, norm = _cache(64, dim), empty(dim, dtype=dtype)
        qkv, angles = empty(tokens, 32 * dim, dtype=dtype), empty(4096, dim, dtype=torch.float32)
        positions, slots = empty(tokens, dtype=_INT), empty(tokens, dtype=torch.int64)
        return qk_norm_rope_kv_write(qkv, norm, norm, 1e-6, angles, positions, slots, cache, cache)

    return call


def _kv_write() -> object:
    from quire.kernels.attention.kv_write import kv_write

    cache, qkv = _cache(64, 64), empty(64, 36 * 64)
    return kv_write(qkv, empty(36 * 64), empty(64, dtype=torch.int64), cache, cache)


def _copy() -> object:
    from quire.kernels.state.copy_blocks import copy_blocks

    cache, pairs = empty(2, 64, 8, 64, 128, dtype=torch.float8_e4m3fn), empty(4, dtype=torch.int64)
    return copy_blocks(cache, cache, pairs, pairs)


@cases(hot=True, e4m3=True)
def hot_fp8_cache() -> Calls:
    for group in (2, 4):
        for level in (0, 1, 2):
            call = _rope_decode(64, group, 128, 64, level=level, pdl=True)
            yield f"fp8-cache rope-decode D128 G{group} level {level}", call
        yield f"fp8-cache rope-decode D128 G{group}, 32 rows", _rope_decode(32, group, 128, 64)
        yield f"fp8-cache decode D128 G{group}", _decode(64, group, 128, 64, pdl=True)
        for tokens in (128, 8192):
            yield f"fp8-cache prefill D128 G{group} {tokens}", _prefill(tokens, group, 128, 64)
        yield f"fp8-cache split D128 G{group}", _prefill(64, group, 128, 64, cached=4096)
    for rows in (160, 256):  # two warps and one
        for narrow in (False, True):
            call = _rope_decode(rows, 4, 128, 64, narrow=narrow, pdl=True)
            yield f"fp8-cache rope-decode {rows} rows, narrow {narrow}", call
    for level in (0, 2):
        call = _rope_decode(64, 4, 128, 64, level=level, exact=True, pdl=True)
        yield f"fp8-cache rope-decode exact {level}", call
    yield "fp8-cache prefill exact 64", _prefill(64, 2, 128, 64, exact=True, cached=4096)
    for tokens in (1, 8192):
        yield f"fp8-cache rope D128 tokens {tokens}", _write(tokens, 128)
    yield "fp8-cache kv-write", _kv_write
    yield "fp8-cache copy", _copy


@cases(hot=False, e4m3=True)
def other_fp8_cache() -> Calls:
    for dim in (16, 64, 96, 256):
        yield f"fp8-cache decode D{dim}", _decode(64, 2, dim, 64)
        yield f"fp8-cache prefill D{dim}", _prefill(8192, 2, dim, 64)
    yield "fp8-cache decode block 16", _decode(64, 2, 128, 16)
    yield "fp8-cache prefill block 16", _prefill(8192, 2, 128, 16)
    yield "fp8-cache decode window", _decode(64, 4, 128, 64, window=4096)
    yield "fp8-cache prefill window", _prefill(8192, 4, 128, 64, window=4096)
    yield "fp8-cache prefill exact 8192", _prefill(8192, 2, 128, 64, exact=True)
    for dtype in (torch.float16, torch.float32):
        yield f"fp8-cache decode {dtype}", _decode(64, 2, 128, 64, dtype)
        yield f"fp8-cache prefill {dtype}", _prefill(8192, 2, 128, 64, dtype)
        yield f"fp8-cache rope {dtype}", _write(64, 128, dtype)
