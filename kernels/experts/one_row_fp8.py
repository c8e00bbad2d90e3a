"""The products of one_row_products.py with FP8 weights: numbers and sums are those of fp8_gemv.py.

Invariant: every program quantizes the row that it takes; what all experts take of gates and ups is
one row, whose groups of 128 columns are each of one expert.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# mypy: disable-error-code="var-annotated, attr-defined"

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.experts.choice import expert_at, experts_of_pieces, load_downs
from quire.kernels.linear.fp8_gemv import _load_row, _load_tiles, _product, _take_row


@triton.jit(do_not_specialize=["turns"])
def gate_up_fp8_kernel(
    x_ptr,  # [K]
    norm_ptr,  # [K]
    scores_ptr,  # [E]
    w_ptr,  # [E, 2 * N, K / 4] int32, four e4m3 each, gate rows then up rows
    ws_ptr,  # [E, 2 * N / 128, ceil(K / 128)] fp32
    out_ptr,  # [PER_TOKEN, N]
    N,
    eps,
    turns,  # tiles a program
    E: tl.constexpr,
    K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,  # divides 128
    LANES: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(N / (turns * BLOCK_N)), PER_TOKEN)."""
    CHUNKS: tl.constexpr = (K + LANES * 16 - 1) // (LANES * 16)
    slot = tl.program_id(1)
    first = tl.program_id(0) * (turns * BLOCK_N)
    end = tl.minimum(first + turns * BLOCK_N, N)
    norm = ()
    for c in tl.static_range(CHUNKS):
        norm = norm + (_load_row(norm_ptr, c * LANES * 16, K, LANES),)  # noqa: RUF005
    if PDL:
        gdc_wait()
        gdc_launch_dependents()  # then: downs read scores before their own wait
    gates = expert_at(scores_ptr, slot, E, BLOCK_E) * (2 * N)
    ups = gates + N
    w, ws = _load_tiles(w_ptr, ws_ptr, first, end, gates, N, K, BLOCK_N, LANES, CHUNKS)
    up, us = _load_tiles(w_ptr, ws_ptr, first, end, ups, N, K, BLOCK_N, LANES, CHUNKS)
    narrow, scales = _take_row(x_ptr, tl.float8e4nv, eps, norm, K, LANES, CHUNKS, True)
    for start in range(first, end, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        ahead = start + BLOCK_N
        next_w, next_ws = _load_tiles(
            w_ptr, ws_ptr, ahead, end, gates, N, K, BLOCK_N, LANES, CHUNKS
        )
        next_up, next_us = _load_tiles(w_ptr, ws_ptr, ahead, end, ups, N, K, BLOCK_N, LANES, CHUNKS)
        z = _product(w, ws, narrow, scales, BLOCK_N, LANES, CHUNKS)
        z = z / (1.0 + tl.exp(-z)) * _product(up, us, narrow, scales, BLOCK_N, LANES, CHUNKS)
        tl.store(out_ptr + slot * N + n, z.to(out_ptr.dtype.element_ty), mask=n < end)
        w, ws, up, us = next_w, next_ws, next_up, next_us


@triton.jit
def _load_down_scales(
    ws_ptr, first, experts, N, K: tl.constexpr, LANES: tl.constexpr, COUNT: tl.constexpr
):
    """The scales of a line of all experts taken, for each thread's columns: [LANES] a chunk."""
    PIECES: tl.constexpr = K // 16
    CHUNKS: tl.constexpr = (COUNT * PIECES + LANES - 1) // LANES
    GROUPS: tl.constexpr = K // 128
    block = tl.minimum(first, N - 1) // 128
    ws = ()
    for c in tl.static_range(CHUNKS):
        piece = c * LANES + tl.arange(0, LANES)
        at = (experts[c] * ((N + 127) // 128) + block) * GROUPS + (piece % PIECES) // 8
        scale = tl.load(ws_ptr + at, mask=piece < COUNT * PIECES, other=0.0)
        ws = ws + (scale,)  # noqa: RUF005
    return ws


@triton.jit(do_not_specialize=["turns"])
def down_fp8_kernel(
    x_ptr,  # [PER_TOKEN, K]
    scores_ptr,  # [E]
    w_ptr,  # [E, N, K / 4] int32, four e4m3 each
    ws_ptr,  # [E, ceil(N / 128), K / 128] fp32
    sum_ptr,  # [N], to which their weighted sum is added
    N,
    turns,  # tiles a program
    E: tl.constexpr,
    K: tl.constexpr,  # a multiple of 128
    PER_TOKEN: tl.constexpr,
    RENORMALISE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,  # divides 128
    LANES: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(N / (turns * BLOCK_N)),)."""
    PIECES: tl.constexpr = K // 16
    CHUNKS: tl.constexpr = (PER_TOKEN * PIECES + LANES - 1) // LANES
    first = tl.program_id(0) * (turns * BLOCK_N)
    end = tl.minimum(first + turns * BLOCK_N, N)
    if PDL:
        gdc_launch_dependents()
    experts, of = experts_of_pieces(scores_ptr, E, BLOCK_E, PER_TOKEN, RENORMALISE, PIECES, LANES)
    w = load_downs(w_ptr, first, end, experts, N, K, 16, 4, BLOCK_N, LANES, PER_TOKEN)
    ws = _load_down_scales(ws_ptr, first, experts, N, K, LANES, PER_TOKEN)
    if PDL:
        gdc_wait()
    narrow, scales = _take_row(x_ptr, tl.float8e4nv, 0.0, (), PER_TOKEN * K, LANES, CHUNKS, False)
    weighted = ()
    for c in tl.static_range(CHUNKS):
        weighted = weighted + (scales[c] * of[c],)  # noqa: RUF005
    for start in range(first, end, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        ahead = start + BLOCK_N
        next_w = load_downs(w_ptr, ahead, end, experts, N, K, 16, 4, BLOCK_N, LANES, PER_TOKEN)
        next_ws = _load_down_scales(ws_ptr, ahead, experts, N, K, LANES, PER_TOKEN)
        beside = tl.load(sum_ptr + n, mask=n < end, other=0.0).to(tl.float32)
        z = _product(w, ws, narrow, weighted, BLOCK_N, LANES, CHUNKS) + beside
        tl.store(sum_ptr + n, z.to(sum_ptr.dtype.element_ty), mask=n < end)
        w, ws = next_w, next_ws
