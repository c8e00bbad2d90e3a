"""Matrix-vector products for one to four rows, without tensor cores.

Invariant: a program owns BLOCK_N rows of the weight, holds them whole in registers and applies
them to every row of x, so each weight is read once. Weights do not depend on the kernel before, so
with dependent launch they are fetched before the wait. A row of x is summed in the same order
whatever the rows beside it: results do not depend on M.

Around the product: RMSNorm of x before it, SiLU·mul and the residual after it, all in fp32 and
rounded once.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.linear import product_options

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


def gemv(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    block_n: int,
    warps: int,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    silu: bool = False,
    pdl: bool = False,
) -> None:
    """out = x @ weight.T, with what `linear` may put around it. x: [M, K], M <= MAX_ROWS.

    block_n: weight rows a program; warps: of a program. out may be residual.
    """
    rows, width = x.shape
    columns = out.shape[1]
    lanes = warps * 32 * _BYTES_A_LANE // weight.element_size()
    _gemv_kernel[(triton.cdiv(columns, block_n),)](
        x,
        weight,
        *product_options.pointers(x, out, residual, norm_weight),
        columns,
        eps,
        M=rows,
        K=width,
        BLOCK_N=block_n,
        BLOCK_K=min(lanes, triton.next_power_of_2(width)),
        MASK_N=columns % block_n != 0,
        num_warps=warps,
        **product_options.flags(residual, norm_weight, silu=silu, pdl=pdl),
    )


def fits(width: int, block_n: int, warps: int, silu: bool) -> bool:
    """Whether a program's share of the weights stays in registers (64 elements a thread)."""
    return block_n * width * (2 if silu else 1) <= 64 * 32 * warps
