"""Naive prefill attention in Triton: one program keeps every score of its queries at once.

    q [N, Hq, D]    k, v [N, Hkv, D]    one sequence, not paged

What a first kernel looks like: no running softmax, hence no loop over the keys, hence a tile of
[queries, N]. Correct, and bounded: keys and scores must fit the shared memory of one program, so
beyond a few hundred tokens the launch is refused (triton's OutOfResources).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

_QUERIES = 16


@triton.jit
def _naive_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, tokens, scale,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, NP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """grid (N / BM, HQ); NP: N padded to a power of two."""
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.arange(0, NP)
    rd = tl.arange(0, D)
    head = tl.program_id(1)
    kv_head = head // (HQ // HKV)
    rows = (rm < tokens)[:, None]
    columns = (rn < tokens)[:, None]
    q = tl.load(q_ptr + (rm[:, None] * HQ + head) * D + rd[None, :], mask=rows, other=0.0)
    k = tl.load(k_ptr + (rn[:, None] * HKV + kv_head) * D + rd[None, :], mask=columns, other=0.0)
    v = tl.load(v_ptr + (rn[:, None] * HKV + kv_head) * D + rd[None, :], mask=columns, other=0.0)
    s = tl.dot(q, k.T, input_precision=PRECISION) * scale
    s = tl.where(rn[None, :] <= rm[:, None], s, -float("inf"))
    p = tl.exp(s - tl.max(s, 1)[:, None])
    y = tl.dot(p.to(v.dtype), v, input_precision=PRECISION) / tl.sum(p, 1)[:, None]
    target = out_ptr + (rm[:, None] * HQ + head) * D + rd[None, :]
    tl.store(target, y.to(out_ptr.dtype.element_ty), mask=rows)


def naive_triton_prefill(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention of one sequence; contiguous inputs, D a power of two. Returns [N, Hq, D].

    Raises triton's OutOfResources, which names what was asked for and the limit, when the keys of
    the sequence do not fit one program.
    """
    tokens, q_heads, dim = q.shape
    out = torch.empty_like(q)
    _naive_kernel[(triton.cdiv(tokens, _QUERIES), q_heads)](
        q, k, v, out, tokens, scale,
        HQ=q_heads, HKV=k.shape[1], D=dim, BM=_QUERIES,
        NP=max(16, triton.next_power_of_2(tokens)),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32", num_warps=4, num_stages=1,
    )  # fmt: skip
    return out
