"""Calls of the attention kernels."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from offline.compiling import Calls, cases, empty

_INT = torch.int32


def _caches(blocks: int, kv_heads: int, block_size: int, dim: int, dtype: torch.dtype) -> Tensor:
    return empty(blocks, kv_heads, block_size, dim, dtype=dtype)


def _decode(
    rows: int,
    group: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype = torch.bfloat16,
    **launch: Any,
) -> Callable[[], object]:
    def call() -> object:
        from quire.kernels.attention.decode import decode_attention

        cache = _caches(64, 8, block_size, dim, dtype)
        q = empty(rows, 8 * group, dim, dtype=dtype)
        table, context = empty(rows, 64, dtype=_INT), empty(rows, dtype=_INT)
        return decode_attention(q, cache, cache, table, context, 0.1, 4096, **launch)

    return call


def _rope_decode(
    rows: int,
    group: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype = torch.bfloat16,
    **launch: Any,
) -> Callable[[], object]:
    def call() -> object:
        from quire.kernels.attention.decode import rope_decode_attention

        cache, norm = _caches(64, 8, block_size, dim, dtype), empty(dim, dtype=dtype)
        qkv = empty(rows, (8 * group + 16) * dim, dtype=dtype)
        angles = empty(4096, dim, dtype=torch.float32)
        ints, slots = empty(rows, dtype=_INT), empty(rows, dtype=torch.int64)
        table = empty(rows, 64, dtype=_INT)
        return rope_decode_attention(
            qkv, norm, norm, 1e-6, angles, ints, slots, cache, cache, table, ints, 0.1, 4096,
            **launch,
        )  # fmt: skip

    return call


@cases(hot=True)
def hot_decode() -> Calls:
    for name, make in (("decode", _decode), ("rope-decode", _rope_decode)):
        for level in (0, 1, 2):
            for group in (2, 4):
                for pdl in (False, True):
                    yield (
                        f"{name} D128 G{group} level {level} pdl {pdl}",
                        make(64, group, 128, 64, level=level, pdl=pdl),
                    )
        for group, rows in itertools.product((2, 4), (32, 48)):
            yield f"{name} D128 G{group}, {rows} rows", make(rows, group, 128, 64, pdl=True)
        yield f"{name} D64 G2 block 16", make(64, 2, 64, 16)


@cases(hot=False)
def other_decode() -> Calls:
    for dim in (16, 32, 96, 256):
        yield f"decode D{dim}", _decode(64, 2, dim, 64)
        yield f"rope-decode D{dim}", _rope_decode(64, 2, dim, 64)
    for block_size in (16, 32, 128, 256):
        yield f"decode block {block_size}", _decode(64, 2, 128, block_size)
    for dtype in (torch.float16, torch.float32):
        for dim in (64, 128, 256):
            yield f"decode {dtype} D{dim}", _decode(64, 16, dim, 64, dtype)
            yield f"rope-decode {dtype} D{dim}", _rope_decode(64, 16, dim, 64, dtype)


def _prefill(
    tokens: int,
    rows: int,
    group: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    cached: int = 0,
    **launch: Any,
) -> Callable[[], object]:
    def call() -> object:
        from quire.kernels.attention.prefill import prefill_attention

        cache = _caches(64, 8, block_size, dim, dtype)
        q = empty(tokens, 8 * group, dim, dtype=dtype)
        table, starts = empty(rows, 64, dtype=_INT), empty(rows + 1, dtype=_INT)
        context = empty(rows, dtype=_INT)
        longest = tokens - rows + 1
        return prefill_attention(
            q, cache, cache, table, starts, context, 0.1, longest, cached + longest, **launch
        )

    return call


@cases(hot=True)
def hot_prefill() -> Calls:
    for group in (2, 4):
        for block_size in (64, 128):
            for tokens in (128, 2048, 8192):  # split, one group a program, three
                yield (
                    f"prefill D128 G{group} block {block_size} tokens {tokens}",
                    _prefill(tokens, 4, group, 128, block_size),
                )
    for group in (2, 4):
        for tokens in (4, 64):  # short rows' tiles, and the others', split
            for pdl in (False, True):
                yield (
                    f"prefill D128 G{group} split tokens {tokens} pdl {pdl}",
                    _prefill(tokens, 2, group, 128, 64, cached=4096, pdl=pdl),
                )
    yield "prefill D64 G2 block 16", _prefill(8192, 4, 2, 64, 16)


@cases(hot=True)
def windows() -> Calls:
    for group in (2, 4):
        for level in (0, 1, 2):
            for pdl in (False, True):
                launch: dict[str, Any] = {"level": level, "pdl": pdl, "window": 4096}
                name = f"decode window D128 G{group} level {level} pdl {pdl}"
                yield name, _decode(64, group, 128, 64, **launch)
        yield f"prefill window D128 G{group}", _prefill(8192, 4, group, 128, 64, window=4096)


@cases(hot=False)
def other_prefill() -> Calls:
    for dim in (16, 32, 96, 256):
        yield f"prefill D{dim}", _prefill(8192, 4, 2, dim, 64)
        yield f"prefill D{dim} split", _prefill(64, 2, 2, dim, 64, cached=4096)
    for block_size in (16, 32, 256):
        yield f"prefill block {block_size}", _prefill(8192, 4, 2, 128, block_size)
    for dtype in (torch.float16, torch.float32):
        for dim in (64, 128, 256):
            yield f"prefill {dtype} D{dim}", _prefill(8192, 4, 16, dim, 64, dtype)
            yield f"prefill {dtype} D{dim} split", _prefill(8, 1, 16, dim, 64, dtype, cached=4096)


def _rope(
    tokens: int, group: int, dim: int, dtype: torch.dtype, pdl: bool = False
) -> Callable[[], object]:
    def call() -> object:
        from quire.kernels.attention.qk_norm_rope import qk_norm_rope_kv_write

        cache, norm = _caches(64, 8, 64, dim, dtype), empty(dim, dtype=dtype)
        qkv = empty(tokens, (8 * group + 16) * dim, dtype=dtype)
        angles = empty(4096, dim, dtype=torch.float32)
        positions, slots = empty(tokens, dtype=_INT), empty(tokens, dtype=torch.int64)
        return qk_norm_rope_kv_write(
            qkv, norm, norm, 1e-6, angles, positions, slots, cache, cache, pdl=pdl
        )

    return call


def _exact_prefill(
    tokens: int, group: int, dim: int, block_size: int, dtype: torch.dtype = torch.bfloat16
) -> Callable[[], object]:
    def call() -> object:
        from quire.kernels.attention.exact_prefill import prefill_attention

        cache = _caches(64, 8, block_size, dim, dtype)
        q = empty(tokens, 8 * group, dim, dtype=dtype)
        table, starts = empty(2, 64, dtype=_INT), empty(3, dtype=_INT)
        context = empty(2, dtype=_INT)
        return prefill_attention(
            q, cache, cache, table, starts, context, 0.1, tokens, 4096 + tokens, pdl=True
        )

    return call


@cases(hot=True)
def hot_exact() -> Calls:
    for group in (2, 4):
        for level in (0, 1, 2):
            call = _rope_decode(64, group, 128, 64, level=level, exact=True, pdl=True)
            yield f"rope-decode D128 G{group} exact {level}", call
        for rows in (24, 48, 96):
            call = _rope_decode(rows, group, 128, 64, exact=True, pdl=True)
            yield f"rope-decode D128 G{group} exact, {rows} rows", call
        yield f"prefill D128 G{group} exact 64", _exact_prefill(64, group, 128, 64)


@cases(hot=False)
def other_exact() -> Calls:
    for exact in (False, True):  # five programs a multiprocessor
        call = _rope_decode(160, 2, 128, 64, exact=exact, pdl=True)
        yield f"rope-decode D128 G2 exact {exact}, 160 rows", call
    for group in (2, 4):  # with a second sum in its registers, some may spill
        yield f"prefill D128 G{group} exact 8192", _exact_prefill(8192, group, 128, 64)
    for dim in (64, 96, 256):
        yield f"prefill D{dim} exact", _exact_prefill(8192, 2, dim, 64)
        yield f"decode D{dim} exact", _decode(64, 2, dim, 64, exact=True)


@cases(hot=True)
def hot_rope() -> Calls:
    for tokens in (1, 64, 8192):
        for pdl in (False, True):
            yield f"rope D128 tokens {tokens} pdl {pdl}", _rope(tokens, 2, 128, torch.bfloat16, pdl)


@cases(hot=False)
def other_rope() -> Calls:
    for dim in (16, 32, 64, 96, 256):
        yield f"rope D{dim}", _rope(8192, 4, dim, torch.bfloat16)
    yield "rope float32", _rope(8192, 4, 128, torch.float32)
