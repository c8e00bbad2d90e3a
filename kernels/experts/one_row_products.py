"""The products of the experts of one row, without tensor cores: gates and ups, downs and their sum.

Invariant: a program goes over lines of the weight, the next ones on their way in registers while
those at hand are multiplied. What the experts make is weighted and summed in fp32, and rounded
once, with the residual.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# mypy: disable-error-code="var-annotated, attr-defined"

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.experts.choice import expert_at, experts_of_pieces, load_downs
from quire.kernels.linear.gemv import _load_row, _load_weights


@triton.jit
def _load_pair(w_ptr, n, end, N, K: tl.constexpr, BLOCK_K: tl.constexpr, CHUNKS: tl.constexpr):
    """Lines n of gates, and of ups: a tile for each chunk of columns."""
    gate = ()
    up = ()
    for c in tl.static_range(CHUNKS):
        tile = _load_weights(w_ptr, n, end, c * BLOCK_K, K, BLOCK_K, True)
        gate = gate + (tile,)  # noqa: RUF005
        tile = _load_weights(w_ptr, N + n, N + end, c * BLOCK_K, K, BLOCK_K, True)
        up = up + (tile,)  # noqa: RUF005
    return gate, up


@triton.jit(do_not_specialize=["turns"])
def gate_up_kernel(
    x_ptr,  # [K]
    norm_ptr,  # [K]
    scores_ptr,  # [E]
    w_ptr,  # [E, 2 * N, K], gate rows then up rows
    out_ptr,  # [PER_TOKEN, N]
    N,
    eps,
    turns,  # tiles a program
    E: tl.constexpr,
    K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(N / (turns * BLOCK_N)), PER_TOKEN)."""
    CHUNKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    slot = tl.program_id(1)
    first = tl.program_id(0) * (turns * BLOCK_N)
    end = tl.minimum(first + turns * BLOCK_N, N)
    norm = ()
    for c in tl.static_range(CHUNKS):
        norm = norm + (_load_row(norm_ptr, c * BLOCK_K, K, BLOCK_K),)  # noqa: RUF005
    if PDL:
        gdc_wait()
        gdc_launch_dependents()  # then: downs read scores before their own wait
    expert = expert_at(scores_ptr, slot, E, BLOCK_E)
    w_ptr += expert.to(tl.int64) * (2 * N) * K
    n = (first + tl.arange(0, BLOCK_N)).to(tl.int64)
    gate, up = _load_pair(w_ptr, n, end, N, K, BLOCK_K, CHUNKS)
    x = ()
    squares = tl.zeros((1, BLOCK_K), tl.float32)
    for c in tl.static_range(CHUNKS):
        row = _load_row(x_ptr, c * BLOCK_K, K, BLOCK_K)
        squares += row * row
        x = x + (row * norm[c],)  # noqa: RUF005
    scale = 1.0 / tl.sqrt(tl.sum(squares) / K + eps)
    for start in range(first, end, BLOCK_N):
        n = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
        next_gate, next_up = _load_pair(w_ptr, n + BLOCK_N, end, N, K, BLOCK_K, CHUNKS)
        acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        acc_up = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for c in tl.static_range(CHUNKS):
            acc += gate[c].to(tl.float32) * x[c]
            acc_up += up[c].to(tl.float32) * x[c]
        y = tl.sum(acc, 1) * scale
        y = y / (1.0 + tl.exp(-y)) * (tl.sum(acc_up, 1) * scale)
        tl.store(out_ptr + slot * N + n, y.to(out_ptr.dtype.element_ty), mask=n < end)
        gate, up = next_gate, next_up


@triton.jit(do_not_specialize=["turns"])
def down_kernel(
    x_ptr,  # [PER_TOKEN, K]
    scores_ptr,  # [E]
    w_ptr,  # [E, N, K]
    sum_ptr,  # [N], to which their weighted sum is added
    N,
    turns,  # tiles a program
    E: tl.constexpr,
    K: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    RENORMALISE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LANES: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(N / (turns * BLOCK_N)),)."""
    PIECES: tl.constexpr = K // 8
    CHUNKS: tl.constexpr = (PER_TOKEN * PIECES + LANES - 1) // LANES
    first = tl.program_id(0) * (turns * BLOCK_N)
    end = tl.minimum(first + turns * BLOCK_N, N)
    if PDL:
        gdc_launch_dependents()
    experts, of = experts_of_pieces(scores_ptr, E, BLOCK_E, PER_TOKEN, RENORMALISE, PIECES, LANES)
    w = load_downs(w_ptr, first, end, experts, N, K, 8, 8, BLOCK_N, LANES, PER_TOKEN)
    if PDL:
        gdc_wait()
    x = ()
    for c in tl.static_range(CHUNKS):
        at = ((c * LANES + tl.arange(0, LANES)) * 8)[:, None] + tl.arange(0, 8)[None, :]
        if (c + 1) * LANES > PER_TOKEN * PIECES:
            row = tl.load(x_ptr + at, mask=at < PER_TOKEN * K, other=0.0)
        else:
            row = tl.load(x_ptr + at)
        x = x + (row,)  # noqa: RUF005
    for start in range(first, end, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        ahead = start + BLOCK_N
        next_w = load_downs(w_ptr, ahead, end, experts, N, K, 8, 8, BLOCK_N, LANES, PER_TOKEN)
        beside = tl.load(sum_ptr + n, mask=n < end, other=0.0).to(tl.float32)
        acc = tl.zeros((BLOCK_N, LANES), tl.float32)
        for c in tl.static_range(CHUNKS):
            y = tl.sum(w[c].to(tl.float32) * x[c].to(tl.float32)[None, :, :], 2)
            acc += y * of[c][None, :]
        z = tl.sum(acc, 1) + beside
        tl.store(sum_ptr + n, z.to(sum_ptr.dtype.element_ty), mask=n < end)
        w = next_w
