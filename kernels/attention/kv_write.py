"""The write of keys and values to the cache, with the biases of the product before it, of models
that do not rotate.

    qkv      [T, (Hq + 2 * Hkv) * D], heads of q, then k, then v
    caches   [blocks, Hkv, block_size, D]
    result   [T, Hq, D], q with its bias

Invariant: every number is rounded once, to qkv's dtype, where the bias is added; the cache holds
that, in its own dtype (`held`).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.attention.kv_format import held
from quire.kernels.support import check_cache, check_supported

_BLOCK = 1024  # numbers of one token a program


@triton.jit(do_not_specialize_on_alignment=["slots_ptr"])
def _kv_write_kernel(
    qkv_ptr, bias_ptr, q_ptr, k_ptr, v_ptr, slots_ptr,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, BS: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """grid (T, ceil((HQ + 2 * HKV) * D / BLOCK))."""
    WIDTH: tl.constexpr = (HQ + 2 * HKV) * D
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    bias = tl.load(bias_ptr + i, mask=i < WIDTH, other=0.0).to(tl.float32)
    slot = tl.load(slots_ptr + token).to(tl.int64)  # before the wait, as in decode.py
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(qkv_ptr + token * WIDTH + i, mask=i < WIDTH, other=0.0).to(tl.float32)
    x = (x + bias).to(q_ptr.dtype.element_ty)
    tl.store(q_ptr + token * (HQ * D) + i, x, mask=i < HQ * D)
    head = i // D
    first = (slot // BS * HKV * BS + slot % BS) * D + i % D  # of this dimension, in head 0
    of_k = (head >= HQ) & (head < HQ + HKV)
    tl.store(k_ptr + first + (head - HQ) * (BS * D), held(x, k_ptr.dtype.element_ty), mask=of_k)
    of_v = (head >= HQ + HKV) & (i < WIDTH)
    v = held(x, v_ptr.dtype.element_ty)
    tl.store(v_ptr + first + (head - HQ - HKV) * (BS * D), v, mask=of_v)


def kv_write(
    qkv: Tensor,
    bias: Tensor,
    slot_mapping: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    pdl: bool = False,
) -> Tensor:
    """Add the biases, write k and v to the cache; returns q: [T, Hq, D]. See the reference.

    Raises ValueError for a head size, dtype, block size or group that is not supported."""
    _, kv_heads, block_size, dim = k_cache.shape
    tokens, width = qkv.shape
    q_heads = width // dim - 2 * kv_heads
    check_supported(dim, qkv.dtype, block_size, q_heads // kv_heads)
    check_cache(qkv.dtype, k_cache.dtype)
    q = torch.empty(tokens, q_heads, dim, dtype=qkv.dtype, device=qkv.device)
    if tokens:
        _kv_write_kernel[(tokens, triton.cdiv(width, _BLOCK))](
            qkv.contiguous(), bias, q, k_cache, v_cache, slot_mapping, HQ=q_heads, HKV=kv_heads,
            D=dim, BS=block_size, BLOCK=_BLOCK, PDL=pdl, num_warps=4, launch_pdl=pdl,
        )  # fmt: skip
    return q
