"""q/k norm, rotary embedding and KV write in one Triton kernel.

    qkv      [T, (Hq + 2 * Hkv) * D], heads of q, then k, then v
    cos_sin  [positions, D] fp32, D/2 cosines, then D/2 sines
    caches   [blocks, Hkv, block_size, D]
    result   [T, Hq, D], the rotated q

One program takes a few heads of one token, all of one kind (q, k or v). Norm and rotation are fp32
and rounded once; v is copied. A head's result depends on that head alone.

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

from .support import check_supported


@triton.jit(do_not_specialize=["stride"])
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
    rd = tl.arange(0, HALF)
    lane = rd < D // 2
    ok = lane[None, :] & (heads < HQ + 2 * HKV)[:, None]
    # Norm weights never change: they may be fetched before the kernel ahead has finished.
    norm_ptr = k_norm_ptr if first >= HQ else q_norm_ptr
    w1 = tl.load(norm_ptr + rd, mask=lane, other=0.0).to(tl.float32)
    w2 = tl.load(norm_ptr + D // 2 + rd, mask=lane, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    source = qkv_ptr + token * stride + heads[:, None] * D + rd[None, :]
    x1 = tl.load(source, mask=ok, other=0.0)
    x2 = tl.load(source + D // 2, mask=ok, other=0.0)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    cell = (slot // BS * HKV * BS + slot % BS) * D
    if first >= HQ + HKV:
        offset = cell + (heads - HQ - HKV)[:, None] * (BS * D) + rd[None, :]
        tl.store(v_ptr + offset, x1.to(v_ptr.dtype.element_ty), mask=ok)
        tl.store(v_ptr + offset + D // 2, x2.to(v_ptr.dtype.element_ty), mask=ok)
    else:
        angle = cos_sin_ptr + tl.load(positions_ptr + token).to(tl.int64) * D + rd
        cos = tl.load(angle, mask=lane, other=0.0)[None, :]
        sin = tl.load(angle + D // 2, mask=lane, other=0.0)[None, :]
        f1 = x1.to(tl.float32)
        f2 = x2.to(tl.float32)
        mean = (tl.sum(f1 * f1, 1) + tl.sum(f2 * f2, 1)) / D
        scale = tl.rsqrt(mean + eps)[:, None]
        f1 = f1 * scale * w1[None, :]
        f2 = f2 * scale * w2[None, :]
        y1 = f1 * cos - f2 * sin
        y2 = f2 * cos + f1 * sin
        if first >= HQ:
            offset = cell + (heads - HQ)[:, None] * (BS * D) + rd[None, :]
            tl.store(k_ptr + offset, y1.to(k_ptr.dtype.element_ty), mask=ok)
            tl.store(k_ptr + offset + D // 2, y2.to(k_ptr.dtype.element_ty), mask=ok)
        else:
            target = q_ptr + (token * HQ + heads[:, None]) * D + rd[None, :]
            tl.store(target, y1.to(q_ptr.dtype.element_ty), mask=ok)
            tl.store(target + D // 2, y2.to(q_ptr.dtype.element_ty), mask=ok)


def launch_shape(tokens: int, q_heads: int, kv_heads: int) -> tuple[int, int]:
    """Heads a program and warps: few tokens want many programs, many tokens few."""
    wanted, warps = (1, 1) if tokens <= 8 else (4, 2) if tokens <= 128 else (8, 4)
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

    The arguments are those of the twin in reference.py. out: [T, Hq, D] contiguous, to be written
    instead of a new tensor. pdl: launch dependent on the kernel before. heads (a power of two that
    divides Hq and Hkv), num_warps: the launch shape, for tuning. Raises ValueError for a head size,
    dtype, block size or group that is not supported.
    """
    _, kv_heads, block_size, dim = k_cache.shape
    tokens = qkv.shape[0]
    q_heads = qkv.shape[1] // dim - 2 * kv_heads
    check_supported(dim, qkv.dtype, block_size, q_heads // kv_heads)
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
