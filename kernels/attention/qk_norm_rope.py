"""q/k norm, rotary embedding and KV write in one Triton kernel.

    qkv      [T, (Hq + 2 * Hkv) * D], heads of q, then k, then v
    cos_sin  [positions, D] fp32, D/2 cosines, then D/2 sines
    caches   [blocks, Hkv, block_size, D]
    result   [T, Hq, D], the rotated q

One program takes a few heads of one token, all of one kind (q, k or v). Norm and rotation are fp32
and rounded once, v is copied; a cache of e4m3 holds what `held` makes of both.

Invariant: a head's result depends on that head alone, bit for bit, whatever kernel computes it and
however its elements lie on the threads: squares are added along a fixed tree, and where a product
meets a sum it is said which of them fuse. Decode attention calls the same functions.

Sources: RMSNorm (Zhang and Sennrich, 2019); RoFormer (Su et al., 2021), halves rotated as in Llama.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.attention.kv_format import held
from quire.kernels.support import check_cache, check_supported

_MANY = 2048  # tokens, above which programs of one warp are faster


@triton.jit
def load_halves(ptr, D: tl.constexpr, HALF: tl.constexpr):
    """The two halves of a vector of D (a norm's weights, cosines and sines): [HALF] fp32 each."""
    rd = tl.arange(0, HALF)
    first = tl.load(ptr + rd, mask=rd < D // 2, other=0.0)
    second = tl.load(ptr + D // 2 + rd, mask=rd < D // 2, other=0.0)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def head_elements(heads, stride, some, D: tl.constexpr, HALF: tl.constexpr):
    """Offsets [heads, 2, HALF] of the elements of some heads, `stride` apart, and which there are.

    The halves are an axis of their own, each padded to a power of two."""
    side = tl.arange(0, 2)[None, :, None]
    rd = tl.arange(0, HALF)[None, None, :]
    ok = some[:, None, None] & (side < 2) & (rd < D // 2)
    return heads[:, None, None] * stride + side * (D // 2) + rd, ok


@triton.jit
def load_heads(ptr, heads, some, D: tl.constexpr, HALF: tl.constexpr):
    """Heads of one token, and the same with their halves exchanged: [heads, 2, HALF] each."""
    at, ok = head_elements(heads, D, some, D, HALF)
    side = tl.arange(0, 2)[None, :, None]
    x = tl.load(ptr + at, mask=ok, other=0.0)
    return x, tl.load(ptr + at + (1 - 2 * side) * (D // 2), mask=ok, other=0.0)


@triton.jit
def norm_rope(x, exchanged, w1, w2, cos, sin, eps, D: tl.constexpr):
    """RMSNorm of each head of x [heads, 2, HALF], then its rotation; fp32, for the caller to round.

    x and exchanged: of load_heads; w1, w2, cos, sin: [HALF] each, of load_halves."""
    f = x.to(tl.float32)
    mean = tl.fma(_sum_of_squares(f), 1.0 / D, eps)
    scale = tl.broadcast_to(tl.rsqrt(mean)[:, :, None], f.shape)
    first = tl.arange(0, 2)[None, :, None] == 0
    w = tl.where(first, w1[None, None, :], w2[None, None, :])
    w_exchanged = tl.where(first, w2[None, None, :], w1[None, None, :])
    turn = tl.where(first, -sin[None, None, :], sin[None, None, :])
    turned = exchanged.to(tl.float32) * scale * w_exchanged * turn
    return tl.fma(f * scale * w, tl.broadcast_to(cos[None, None, :], f.shape), turned)


@triton.jit
def _sum_of_squares(f):
    """[heads, 2, HALF] fp32 -> [heads, 1]. Neighbours first: a sum of two is the same either way
    round, so no layout changes it. As an fma with 0, no square fuses with the addition after it."""
    squares = tl.fma(f, f, tl.zeros_like(f))
    squares = tl.reshape(squares, [f.shape[0], 2 * f.shape[2]])
    for _ in tl.static_range(8):  # 2**8: the largest head
        if squares.shape[1] > 1:
            pairs = tl.reshape(squares, [squares.shape[0], squares.shape[1] // 2, 2])
            squares = tl.sum(pairs, 2)
    return squares


@triton.jit(do_not_specialize_on_alignment=["positions_ptr", "slots_ptr"])
def _qk_norm_rope_kernel(
    qkv_ptr, q_ptr, k_ptr, v_ptr, q_norm_ptr, k_norm_ptr, cos_sin_ptr, positions_ptr, slots_ptr,
    eps, stride,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, BS: tl.constexpr,
    HP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """grid ((HQ + 2 * HKV) / HP, T); HALF: D / 2 padded to a power of two."""
    token = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * HP
    heads = first + tl.arange(0, HP)
    some = heads < HQ + 2 * HKV
    if PDL:
        gdc_launch_dependents()
    # Weights never change, and where a token stands is known before the layers begin (decode.py):
    # all of it may be read before the kernel ahead has finished.
    slot = tl.load(slots_ptr + token).to(tl.int64)
    position = tl.load(positions_ptr + token).to(tl.int64)
    w1, w2 = load_halves(k_norm_ptr if first >= HQ else q_norm_ptr, D, HALF)
    turned = tl.where(first < HQ + HKV, position, 0)  # values are not
    cos, sin = load_halves(cos_sin_ptr + turned * D, D, HALF)
    if PDL:
        gdc_wait()
    cell = (slot // BS * HKV * BS + slot % BS) * D
    x, exchanged = load_heads(qkv_ptr + token * stride, heads, some, D, HALF)
    if first >= HQ + HKV:
        at, ok = head_elements(heads - HQ - HKV, BS * D, some, D, HALF)
        tl.store(v_ptr + cell + at, held(x, v_ptr.dtype.element_ty), mask=ok)
    else:
        y = norm_rope(x, exchanged, w1, w2, cos, sin, eps, D)
        if first >= HQ:
            at, ok = head_elements(heads - HQ, BS * D, some, D, HALF)
            k = held(y.to(q_ptr.dtype.element_ty), k_ptr.dtype.element_ty)
            tl.store(k_ptr + cell + at, k, mask=ok)
        else:
            at, ok = head_elements(heads, D, some, D, HALF)
            tl.store(q_ptr + token * (HQ * D) + at, y.to(q_ptr.dtype.element_ty), mask=ok)


def launch_shape(tokens: int, q_heads: int, kv_heads: int) -> tuple[int, int]:
    """Heads a program and warps: few tokens want many programs, many tokens few, and very many one
    warp with much on its way."""
    wanted, warps = (1, 1) if tokens <= 8 else (4, 2) if tokens <= 128 else (8, 4)
    warps = 1 if tokens > _MANY else warps
    alike = math.gcd(q_heads, kv_heads)
    heads = min(wanted, alike & -alike)  # a power of two that never mixes q, k and v
    return heads, min(warps, heads)


def qk_norm_rope_kv_write(
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    out: Tensor | None = None,
    pdl: bool = False,
    heads: int | None = None,
    num_warps: int | None = None,
) -> Tensor:
    """Norm q and k per head, rotate both, write k and v to the cache; returns q: [T, Hq, D].

    The arguments are those of the twin in `reference`. out: [T, Hq, D] contiguous, to be written
    instead of a new tensor. pdl: launch dependent on the kernel before. heads (a power of two that
    divides Hq and Hkv), num_warps: the launch shape, for tuning. Raises ValueError for a head size,
    dtype, block size or group that is not supported.
    """
    _, kv_heads, block_size, dim = k_cache.shape
    tokens = qkv.shape[0]
    q_heads = qkv.shape[1] // dim - 2 * kv_heads
    check_supported(dim, qkv.dtype, block_size, q_heads // kv_heads)
    check_cache(qkv.dtype, k_cache.dtype)
    if qkv.stride(1) != 1:
        qkv = qkv.contiguous()
    if out is None:
        out = torch.empty(tokens, q_heads, dim, dtype=qkv.dtype, device=qkv.device)
    per_program, warps = launch_shape(tokens, q_heads, kv_heads)
    per_program = heads or per_program
    launch: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    if tokens:
        _qk_norm_rope_kernel[((q_heads + 2 * kv_heads) // per_program, tokens)](
            qkv, out, k_cache, v_cache, q_norm, k_norm, cos_sin, positions, slot_mapping,
            eps, qkv.stride(0),
            HQ=q_heads, HKV=kv_heads, D=dim, HALF=triton.next_power_of_2(dim // 2), BS=block_size,
            HP=per_program, PDL=pdl, num_warps=num_warps or warps, **launch,
        )  # fmt: skip
    return out
