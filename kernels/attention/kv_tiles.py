"""Tiles of the paged cache, as the attention kernels read them, and one token as they write it.

    k_cache, v_cache [blocks, Hkv, block_size, D]        a row's block table: its blocks, in order
    boxes            descriptors of the caches as [blocks * Hkv, block_size, D], a tile at a time

A tile is TILE tokens of one row and one kv head. Copies through descriptors (TMA) need no addresses
and no masks.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from quire.kernels.attention.decode_merge import columns
from quire.kernels.attention.kv_format import held
from quire.kernels.attention.qk_norm_rope import head_elements, norm_rope


@triton.jit
def load_tile(
    k_ptr, v_ptr, k_boxes, v_boxes, table_ptr, block, h, t, end, DTYPE: tl.constexpr,
    HKV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BS: tl.constexpr, TILE: tl.constexpr,
    TMA: tl.constexpr, FIXED: tl.constexpr, PAIRS: tl.constexpr = False,
):  # fmt: skip
    """Keys and values of the tokens [t - before, t - before + TILE): [TILE, DP] each, in the
    queries' DTYPE whatever the cache's, and before. PAIRS: values as they are, two in an int16.

    A tile that `end` cuts lies that many tokens lower, and ends with the context: so nothing past
    it is read. Its first `before` rows are no part of the tile: 0, or with TMA what may also be
    earlier tokens of the context. block: that of a tile which lies in one.

    FIXED (and not TMA): such a tile lies where it would if it were whole, `before` is 0 and the
    rows past the end are 0.
    """
    if FIXED:
        before = 0
    else:
        before = tl.maximum(t + TILE - end, 0)
    if TMA:
        head, at = block * HKV + h, t % BS - before  # rows below 0 are not read, and are 0
        k = tl.reshape(k_boxes.load([head, at, 0]), [TILE, D])
        v = tl.reshape(v_boxes.load([head, at, 0]), [TILE, D // 2 if PAIRS else D])
        return k.to(DTYPE), v, before
    rn = tl.arange(0, TILE)
    if FIXED:
        mine = t + rn < end
    else:
        mine = rn >= before
    if TILE <= BS:
        first = (block.to(tl.int64) * HKV + h) * BS + t % BS - before
        cells = rn
    else:
        tokens = t - before + rn
        blocks = tl.load(table_ptr + tokens // BS, mask=mine, other=0).to(tl.int64)
        first = 0
        cells = (blocks * HKV + h) * BS + tokens % BS
    k = _widened(_read(k_ptr, first, cells, mine, D, DP), DTYPE, FIXED)
    if PAIRS:
        v = _read(v_ptr.to(tl.pointer_type(tl.int16)), first, cells, mine, D // 2, DP // 2)
    else:
        v = _widened(_read(v_ptr, first, cells, mine, D, DP), DTYPE, FIXED)
    return k, v, before


@triton.jit
def _widened(x, DTYPE: tl.constexpr, ORDERED: tl.constexpr):
    """x in DTYPE. ORDERED: out of the compiler's sight, which would have low tiles of queries take
    the matrix units' tokens in another order where it sees that they came as bytes."""
    y = x.to(DTYPE)
    if ORDERED and x.dtype.primitive_bitwidth == 8 and DTYPE.primitive_bitwidth == 16:
        y = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [y], y.dtype, is_pure=False, pack=2
        )
    return y


@triton.jit
def _read(ptr, first, cells, mine, D: tl.constexpr, DP: tl.constexpr):
    """The tokens at first + cells of a cache whose heads have D numbers; 0 where not mine."""
    rd, inside = columns(D, DP)
    ok = mine[:, None]
    if DP != D:
        ok = ok & inside[None, :]
    return tl.load(ptr + first * D + (cells[:, None] * D + rd[None, :]), mask=ok, other=0.0)


@triton.jit
def write_token(
    k, k_exchanged, v, w1, w2, cos, sin, eps, k_ptr, v_ptr, slot, h,
    HKV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Norm and rotate the key in the first of k's heads; write it and v [2 * HALF] to the cache."""
    cell = ((slot // BS * HKV + h) * BS + slot % BS) * D
    y = norm_rope(k, k_exchanged, w1, w2, cos, sin, eps, D)
    rows = tl.arange(0, k.shape[0])
    at, ok = head_elements(rows, D, rows == 0, D, HALF)
    tl.store(k_ptr + cell + at, held(y.to(k.dtype), k_ptr.dtype.element_ty), mask=ok)
    rd, inside = columns(D, 2 * HALF)
    tl.store(v_ptr + cell + rd, held(v, v_ptr.dtype.element_ty), mask=inside)


@triton.jit
def publish(FENCE: tl.constexpr):
    """What some threads of this program wrote, all of them may read. All of them must call it.

    FENCE: of `fence`. Not tl.debug_barrier, beside which the loads of a loop run nowhere ahead.
    """
    if FENCE != "":
        tl.inline_asm_elementwise(FENCE + " // dummy $0", "=r", [], tl.int32, is_pure=False, pack=1)


def fence(device: torch.device, tma: bool) -> str:
    """The instructions that `publish` needs, if what is read comes by TMA or not."""
    if device.type == "cpu":  # the interpreter, which runs one thread
        return ""
    return "fence.proxy.async.global; bar.sync 0;" if tma else "bar.sync 0;"


def boxes(k_cache: Tensor, v_cache: Tensor, tile: int) -> list[TensorDescriptor] | None:
    """Descriptors of both caches, read `tile` tokens of one head of one block at a time. None where
    a tile spans blocks, or a head is padded: it cannot be one box. Nor are values of e4m3, unless
    they are given as pairs (int16): whoever takes single bytes takes them by addresses."""
    blocks, heads, size, dim = k_cache.shape
    if tile > size or dim != triton.next_power_of_2(dim) or v_cache.dtype.itemsize == 1:
        return None
    return [
        TensorDescriptor(c, [blocks * heads, size, n], [size * n, n, 1], [1, tile, n])
        for c, n in ((k_cache, dim), (v_cache, v_cache.shape[3]))
    ]
