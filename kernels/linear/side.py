"""Products of up to 16 rows whose K is summed in shares side by side: a warp for each share.

Invariant: the sum is that of skinny.py with as many shares, bit for bit: within a share in order by
the matrix units, in fp32, and the shares are added in index order. One program has all of them, so
nothing waits for another program, and the chain of dependent products is as long as one share.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.kernels.linear.skinny import _prefetch
from quire.kernels.linear.tuning import SIDE_ROWS

SPLITS = (2, 4, 8)  # that it takes: as many warps


@triton.jit
def _sum_in_order(parts, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPLIT: tl.constexpr):
    """parts: [ROWS, COLUMNS, SPLIT], added from the first on."""
    if SPLIT == 2:
        first, second = parts.split()
        total = first + second
    elif SPLIT == 4:
        even, odd = parts.reshape(ROWS, COLUMNS, 2, 2).split()
        s0, s2 = even.split()
        s1, s3 = odd.split()
        total = s0 + s1 + s2 + s3
    else:
        even, odd = parts.reshape(ROWS, COLUMNS, 4, 2).split()
        even, odd_of_even = even.reshape(ROWS, COLUMNS, 2, 2).split()
        even_of_odd, odd = odd.reshape(ROWS, COLUMNS, 2, 2).split()
        s0, s4 = even.split()
        s1, s5 = even_of_odd.split()
        s2, s6 = odd_of_even.split()
        s3, s7 = odd.split()
        total = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7
    return total


@triton.jit(do_not_specialize=["M"])
def _side_kernel(
    x_ptr,  # [M, K]
    w_ptr,  # [N, K]
    out_ptr,  # [M, N]
    residual_ptr,  # [M, N], read if RESIDUAL; may be out_ptr
    M,
    N,
    K,
    K_SHARE,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    HELD: tl.constexpr,  # steps of a share whose weights are loaded before all else; 0: none
    RESIDUAL: tl.constexpr,
    APART: tl.constexpr,
    PREFETCH: tl.constexpr,
    EARLY: tl.constexpr,  # what follows is launched before weights are loaded
    PDL: tl.constexpr,
):
    """grid (ceil(N / BLOCK_N),)."""
    m = tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = (tl.arange(0, SPLIT) * K_SHARE)[:, None, None]
    k = tl.arange(0, BLOCK_K)[None, None, :]
    row = tl.minimum(n, N - 1).to(tl.int64)[None, :, None] * K  # what is past N is never stored
    at_w = w_ptr + row + begin + k
    if PDL and EARLY:
        gdc_launch_dependents()
    held = ()
    for step in tl.static_range(HELD):
        held = held + (tl.load(at_w + step * BLOCK_K),)  # noqa: RUF005 (what Triton reads)
    if PDL:
        if not EARLY:
            gdc_launch_dependents()
        if PREFETCH:
            LINE: tl.constexpr = 128 * 8 // w_ptr.dtype.element_ty.primitive_bitwidth
            line = tl.arange(0, BLOCK_K // LINE)[None, None, :] * LINE
            for start in range(0, K_SHARE, BLOCK_K):
                _prefetch(w_ptr + row + begin + start + line)
        gdc_wait()
    at_x = x_ptr + m.to(tl.int64)[None, :, None] * K + begin + k
    in_m = (m < M)[None, :, None]
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    if RESIDUAL:
        before = tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    acc = tl.zeros((SPLIT, BLOCK_N, BLOCK_M), tl.float32)
    if HELD:
        rows = ()
        for step in tl.static_range(HELD):
            rows = rows + (tl.load(at_x + step * BLOCK_K, mask=in_m, other=0.0),)  # noqa: RUF005
        for step in tl.static_range(HELD):
            acc = tl.dot(held[step], rows[step].permute(0, 2, 1), acc, input_precision="ieee")
    else:
        for start in tl.range(0, K_SHARE, BLOCK_K, num_stages=STAGES):
            w = tl.load(at_w + start)
            x = tl.load(at_x + start, mask=in_m, other=0.0)
            acc = tl.dot(w, x.permute(0, 2, 1), acc, input_precision="ieee")
    y = _sum_in_order(acc.permute(2, 1, 0), BLOCK_M, BLOCK_N, SPLIT)
    if RESIDUAL:
        if APART:
            y = y.to(x_ptr.dtype.element_ty).to(tl.float32)
        y += before
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)


def side(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    block_n: int,
    block_k: int,
    stages: int,
    split: int,
    prefetch: bool = False,
    hold: bool = False,
    early: bool = False,
    residual: Tensor | None = None,
    apart: bool = False,
    pdl: bool = False,
) -> None:
    """out = x @ weight.T (+ residual). x: [M, K], M up to 16; weight: [N, K]; out may be residual.

    apart: what a residual is added to is rounded to x's dtype first. Raises ValueError for more
    rows, or shares that it does not take."""
    rows, width = x.shape
    if rows > SIDE_ROWS:
        raise ValueError(f"{rows} rows, of which this kernel takes {SIDE_ROWS}")
    if split not in SPLITS or width % (split * block_k):
        raise ValueError(f"{split} shares of {width} in steps of {block_k}")
    if hold and stages * split * block_k != width:
        raise ValueError(f"{stages} steps of {split} shares of {width}, {block_k} columns each")
    columns = weight.shape[0]
    _side_kernel[(triton.cdiv(columns, block_n),)](
        x,
        weight,
        out,
        out if residual is None else residual,
        rows,
        columns,
        width,
        width // split,
        BLOCK_M=8 if rows <= SIDE_ROWS // 2 else SIDE_ROWS,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        SPLIT=split,
        STAGES=stages,
        HELD=stages if hold else 0,
        RESIDUAL=residual is not None,
        APART=apart,
        PREFETCH=prefetch and pdl,
        EARLY=early,
        PDL=pdl,
        num_warps=split,
        launch_pdl=pdl,
    )
