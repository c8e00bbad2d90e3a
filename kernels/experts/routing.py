"""Which experts a token uses, and with what weights.

Invariant: a token's scores are sums over the hidden size in order, in fp32, rounded to the model's
dtype, then a softmax over all experts in fp32: nothing depends on the other tokens. Of equal scores
the lowest expert comes first. A token whose scores are NaN still gets different experts, with
weights of NaN, so that it spoils no other token.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels import support
from quire.kernels.support import HOPPER_SHARED

_FEW = 256  # rows, up to which small tiles fill more of the card, and are read in few steps


@triton.jit(do_not_specialize=["T"])
def _logits_kernel(
    x_ptr,  # [T, K]
    router_ptr,  # [E, K]
    out_ptr,  # [T, E], of x's dtype
    T,
    E,
    K,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(T / BLOCK_T), ceil(E / BLOCK_E))."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    k = tl.arange(0, BLOCK_K)
    # Rows past the end read the last one: what they give is never stored.
    at_x = x_ptr + tl.minimum(t, T - 1).to(tl.int64)[:, None] * K + k[None, :]
    at_w = router_ptr + tl.minimum(e, E - 1)[:, None] * K + k[None, :]
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        if EVEN_K:
            x = tl.load(at_x + start)
            w = tl.load(at_w + start)
        else:
            inside = (start + k < K)[None, :]
            x = tl.load(at_x + start, mask=inside, other=0.0)
            w = tl.load(at_w + start, mask=inside, other=0.0)
        acc = tl.dot(x, w.T, acc, input_precision="ieee")
    at = t.to(tl.int64)[:, None] * E + e[None, :]
    tl.store(
        out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=(t < T)[:, None] & (e < E)[None, :]
    )


@triton.jit(do_not_specialize=["T"])
def _choice_kernel(
    logits_ptr,  # [T, E]
    experts_ptr,  # [T, PER_TOKEN] int64
    weights_ptr,  # [T, PER_TOKEN] fp32
    T,
    E: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,  # E, rounded up to a power of two
    BLOCK_S: tl.constexpr,  # PER_TOKEN, likewise
    RENORMALISE: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(T / BLOCK_T),)."""
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    e = tl.arange(0, BLOCK_E)[None, :]
    s = tl.arange(0, BLOCK_S)[None, :]
    real = (t < T)[:, None]
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    # Rows past the end read the last one: what they choose is never stored.
    at = tl.minimum(t, T - 1)[:, None] * E + e
    logits = tl.load(logits_ptr + at, mask=e < E, other=-float("inf")).to(tl.float32)
    powers = tl.exp(logits - tl.max(logits, 1)[:, None])
    scores = powers / tl.sum(powers, 1)[:, None]
    # What is left: no numbers behind all numbers, what was taken behind them, padding last.
    left = tl.where(scores == scores, scores, -1.0)
    left = tl.where(e < E, left, -3.0)
    experts = tl.zeros((BLOCK_T, BLOCK_S), tl.int32)
    weights = tl.zeros((BLOCK_T, BLOCK_S), tl.float32)
    for slot in tl.static_range(PER_TOKEN):
        share, best = tl.max(left, 1, return_indices=True, return_indices_tie_break_left=True)
        left = tl.where(e == best[:, None], -2.0, left)
        experts = tl.where(s == slot, best[:, None], experts)
        weights = tl.where(s == slot, share[:, None], weights)
    weights = tl.where(weights < 0.0, float("nan"), weights)
    if RENORMALISE:
        weights = weights / tl.sum(weights, 1)[:, None]
    at = t[:, None] * PER_TOKEN + s
    mask = real & (s < PER_TOKEN)
    tl.store(experts_ptr + at, experts.to(tl.int64), mask=mask)
    tl.store(weights_ptr + at, weights, mask=mask)


def route(
    x: Tensor, router: Tensor, per_token: int, *, renormalise: bool, pdl: bool = False
) -> tuple[Tensor, Tensor]:
    """x: [T, H] contiguous; router: [E, H] -> [T, per_token] int64 and fp32. See the reference."""
    rows, width = x.shape
    count = router.shape[0]
    logits = x.new_empty(rows, count)
    experts = torch.empty(rows, per_token, dtype=torch.int64, device=x.device)
    weights = torch.empty(rows, per_token, dtype=torch.float32, device=x.device)
    if not rows:
        return experts, weights
    few = route_class(rows) == 0
    block_t, block_e, block_k, warps = (16, 16, 512, 2) if few else (64, 64, 128, 4)
    wide = x.element_size() > 2
    block_k = block_k // 2 if wide else block_k
    # Few programs wait for memory alone: all that they read is asked for at once.
    stages = 5 if few and support.shared_bytes(x.device) >= HOPPER_SHARED else 3
    grid = (triton.cdiv(rows, block_t), triton.cdiv(count, block_e))
    _logits_kernel[grid](
        x, router, logits, rows, count, width,
        BLOCK_T=block_t, BLOCK_E=block_e, BLOCK_K=block_k, EVEN_K=width % block_k == 0,
        STAGES=2 if wide else stages, PDL=pdl, num_warps=warps, launch_pdl=pdl,
    )  # fmt: skip
    block_e = triton.next_power_of_2(count)
    # A token a program, whatever the rows: a softmax is summed as the threads of its tile lie.
    _choice_kernel[(rows,)](
        logits, experts, weights, rows,
        E=count, PER_TOKEN=per_token, BLOCK_T=1, BLOCK_E=block_e,
        BLOCK_S=triton.next_power_of_2(per_token), RENORMALISE=renormalise, PDL=pdl,
        num_warps=1, launch_pdl=pdl,
    )  # fmt: skip
    return experts, weights


def route_class(rows: int) -> int:
    """A number that two counts of rows share if `route` takes the same kernels for both."""
    return 0 if rows <= _FEW else 1
