"""Matrix-vector products for one to four rows, without tensor cores.

Invariant: each weight is read once. A program owns BLOCK_N rows of the weight, holds them whole in
registers and applies them to every row of x; weights do not depend on the kernel before, so with
dependent launch they are fetched before the wait. For one row of x and large weights a fixed number
of programs holds x instead, and the weight streams through: a program has its next tile on the way
while it uses one. A row of x is summed in the same order whatever the rows beside it: results do
not depend on M.

Around the product: RMSNorm of x before it, SiLU·mul and the residual after it, all in fp32 and
rounded once.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

MAX_ROWS = 4
_BYTES_A_LANE = 16  # one load instruction of one thread


@triton.jit
def _load_weights(
    w_ptr, n, rows, START: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr,
    MASK_N: tl.constexpr,
):  # fmt: skip
    """A tile [len(n), BLOCK_K] of the weight from column START on; zeros outside."""
    k = START + tl.arange(0, BLOCK_K)
    at = w_ptr + n[:, None] * K + k[None, :]
    if MASK_N:
        w = tl.load(at, mask=(n < rows)[:, None] & (k < K)[None, :], other=0.0)
    elif START + BLOCK_K <= K:
        w = tl.load(at)
    else:
        w = tl.load(at, mask=(k < K)[None, :], other=0.0)
    return w


@triton.jit
def _load_row(ptr, START: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Columns [1, BLOCK_K] of one row in fp32. Two axes, so that they lie as the weights do."""
    k = (START + tl.arange(0, BLOCK_K))[None, :]
    if START + BLOCK_K <= K:
        x = tl.load(ptr + k)
    else:
        x = tl.load(ptr + k, mask=k < K, other=0.0)
    return x.to(tl.float32)


@triton.jit
def _gemv_kernel(
    x_ptr,  # [M, K]
    w_ptr,  # [N, K]; with SILU [2 * N, K], gate rows then up rows
    out_ptr,  # [M, N]
    residual_ptr,  # [M, N], read if RESIDUAL; may be out_ptr
    norm_ptr,  # [K], read if NORM
    N,
    eps,
    M: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SILU: tl.constexpr,
    MASK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(N / BLOCK_N),)."""
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    CHUNKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    w = ()
    up = ()
    norm = ()
    for c in tl.static_range(CHUNKS):
        tile = _load_weights(w_ptr, n, N, c * BLOCK_K, K, BLOCK_K, MASK_N)
        w = w + (tile,)  # noqa: RUF005 (what Triton reads)
        if SILU:
            tile = _load_weights(w_ptr, N + n, 2 * N, c * BLOCK_K, K, BLOCK_K, MASK_N)
            up = up + (tile,)  # noqa: RUF005
        if NORM:
            norm = norm + (_load_row(norm_ptr, c * BLOCK_K, K, BLOCK_K),)  # noqa: RUF005
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    for m in tl.static_range(M):
        acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        acc_up = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        squares = tl.zeros((1, BLOCK_K), tl.float32)
        for c in tl.static_range(CHUNKS):
            x = _load_row(x_ptr + m * K, c * BLOCK_K, K, BLOCK_K)
            if NORM:
                squares += x * x
                x = x * norm[c]
            acc += w[c].to(tl.float32) * x
            if SILU:
                acc_up += up[c].to(tl.float32) * x
        y = tl.sum(acc, 1)
        if NORM:
            scale = 1.0 / tl.sqrt(tl.sum(squares) / K + eps)
            y = y * scale
        if SILU:
            z = tl.sum(acc_up, 1)
            if NORM:
                z = z * scale
            y = y / (1.0 + tl.exp(-y)) * z
        at = m * N + n
        if MASK_N:
            if RESIDUAL:
                y += tl.load(residual_ptr + at, mask=n < N, other=0.0).to(tl.float32)
            tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=n < N)
        else:
            if RESIDUAL:
                y += tl.load(residual_ptr + at).to(tl.float32)
            tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty))


@triton.jit
def _stream_kernel(
    x_ptr,  # [K]
    w_ptr,  # [N, K]; with SILU [2 * N, K], gate rows then up rows
    out_ptr,  # [N]
    residual_ptr,  # [N], read if RESIDUAL; may be out_ptr
    norm_ptr,  # [K], read if NORM
    N,
    eps,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # >= K
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SILU: tl.constexpr,
):
    """grid (programs,): each takes every programs-th tile of BLOCK_N rows; past N none is read."""
    lane = tl.arange(0, BLOCK_N).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + lane
    step = tl.num_programs(0) * BLOCK_N
    w = _load_weights(w_ptr, n, N, 0, K, BLOCK_K, True)
    up = w
    if SILU:
        up = _load_weights(w_ptr, N + n, 2 * N, 0, K, BLOCK_K, True)
    x = _load_row(x_ptr, 0, K, BLOCK_K)
    scale = 1.0
    if NORM:
        scale = 1.0 / tl.sqrt(tl.sum(x * x) / K + eps)
        x = x * _load_row(norm_ptr, 0, K, BLOCK_K)
    for first in range(tl.program_id(0) * BLOCK_N, N, step):
        n = first + lane
        w_next = _load_weights(w_ptr, n + step, N, 0, K, BLOCK_K, True)
        up_next = w_next
        if SILU:
            up_next = _load_weights(w_ptr, N + n + step, 2 * N, 0, K, BLOCK_K, True)
        y = tl.sum(w.to(tl.float32) * x, 1) * scale
        if SILU:
            z = tl.sum(up.to(tl.float32) * x, 1) * scale
            y = y / (1.0 + tl.exp(-y)) * z
        if RESIDUAL:
            y += tl.load(residual_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        tl.store(out_ptr + n, y.to(out_ptr.dtype.element_ty), mask=n < N)
        w = w_next
        up = up_next


def gemv(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    block_n: int,
    warps: int,
    programs: int = 0,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    silu: bool = False,
    pdl: bool = False,
) -> None:
    """out = x @ weight.T, with what `linear` may put around it. x: [M, K], M <= MAX_ROWS.

    block_n: weight rows a tile; warps: of a program. programs: how many stream the weight past the
    one row of x, launched plainly (what waits beside a kernel that has the memory busy takes more
    than it gives); 0: one a tile. out may be residual. Raises ValueError for a stream of more rows.
    """
    rows, width = x.shape
    if programs and rows != 1:
        raise ValueError(f"a weight is streamed past one row, not {rows}")
    columns = out.shape[1]
    tiles = triton.cdiv(columns, block_n)
    tensors = (
        x,
        weight,
        out,
        out if residual is None else residual,
        x if norm_weight is None else norm_weight,
    )
    around = {"NORM": norm_weight is not None, "RESIDUAL": residual is not None, "SILU": silu}
    whole = triton.next_power_of_2(width)
    if programs:
        _stream_kernel[(min(programs, tiles),)](
            *tensors, columns, eps, K=width, BLOCK_N=block_n, BLOCK_K=whole, num_warps=warps,
            **around,
        )  # fmt: skip
        return
    lanes = warps * 32 * _BYTES_A_LANE // weight.element_size()
    _gemv_kernel[(tiles,)](
        *tensors, columns, eps, M=rows, K=width, BLOCK_N=block_n, BLOCK_K=min(lanes, whole),
        MASK_N=columns % block_n != 0, PDL=pdl, num_warps=warps, launch_pdl=pdl, **around,
    )  # fmt: skip


def fits(width: int, block_n: int, warps: int, silu: bool) -> bool:
    """Whether a program's share of the weights stays in registers (64 elements a thread)."""
    return block_n * width * (2 if silu else 1) <= 64 * 32 * warps
