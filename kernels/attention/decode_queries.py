"""The query heads that share a kv head, as a program of decode attention takes them.

Invariant: whatever is read before `gdc_wait` stood there before the step began; with ROPE the key
and the value of the row's newest token are in the cache, and seen by all threads, on return.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from quire.kernels.attention.decode_merge import columns
from quire.kernels.attention.kv_tiles import publish, write_token
from quire.kernels.attention.pairs import queries_in_fp16
from quire.kernels.attention.qk_norm_rope import load_halves, load_heads, norm_rope


@triton.jit
def take_queries(
    q_ptr, k_ptr, v_ptr, q_norm_ptr, k_norm_ptr, cos_sin_ptr, position, slot, h, eps, newest,
    scale, G: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BS: tl.constexpr,
    FENCE: tl.constexpr, ROPE: tl.constexpr, PDL: tl.constexpr, PAIRS: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    """Wait for the kernel ahead and take the queries of a kv head, [HEADS, DP], and the scale of
    their scores, with PAIRS [HEADS]. With ROPE they are normed and rotated, and the program of the
    newest token writes it to the cache."""
    HALF: tl.constexpr = DP // 2
    rg = tl.arange(0, HEADS)
    rd, inside = columns(D, DP)
    if ROPE:  # what never changes may be read before
        wq1, wq2 = load_halves(q_norm_ptr, D, HALF)
        wk1, wk2 = load_halves(k_norm_ptr, D, HALF)
        cos, sin = load_halves(cos_sin_ptr + position * D, D, HALF)
    if PDL:
        gdc_wait()
    if ROPE:  # asked for at once: their ways to memory overlap
        x, exchanged = load_heads(q_ptr, h * G + rg, rg < G, D, HALF)
        rk = tl.arange(0, 8)  # the key and seven empty rows: a row stays within a warp, and its sum
        k, k_exchanged = load_heads(q_ptr + (HKV * G + h) * D, rk, rk == 0, D, HALF)
        v = tl.load(q_ptr + (HKV * (G + 1) + h) * D + rd, mask=inside, other=0.0)
        y = norm_rope(x, exchanged, wq1, wq2, cos, sin, eps, D)
        q = tl.reshape(y.to(q_ptr.dtype.element_ty), [HEADS, DP])
        if newest:
            write_token(
                k, k_exchanged, v, wk1, wk2, cos, sin, eps, k_ptr, v_ptr, slot, h, HKV, D, HALF, BS
            )
            publish(FENCE)
    else:
        at = (h * G + rg)[:, None] * D + rd[None, :]
        q = tl.load(q_ptr + at, mask=(rg < G)[:, None] & inside[None, :], other=0.0)
    if PAIRS:
        q, scale = queries_in_fp16(q, scale)
    return q, scale
