"""Products of many rows whose K is summed in shares, one after another in one program.

Invariant: the sum is that of skinny.py with as many shares, bit for bit: within a share in order by
the matrix units, in fp32, and the shares are added in index order. A program adds its accumulator
to a total at the end of each share and begins anew, while the tiles of the next one come.

Tiles come through descriptors (TMA): sm_90 and newer. On sm_90 hopper_tall.py takes most launches,
bit for bit, in tiles of its own (`tall_launch.takes`).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from quire.kernels.linear.tall_launch import SHARES, groups_of, takes


@triton.jit(do_not_specialize=["M"])
def _tall_kernel(
    x_box,  # a descriptor of [M, K]
    w_box,  # and of [N, K]
    out_ptr,  # [M, N]
    residual_ptr,  # [M, N], read if RESIDUAL; may be out_ptr
    M,
    N,
    K,
    K_SHARE,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    SEVERAL: tl.constexpr,  # shares
    STAGES: tl.constexpr,
    RESIDUAL: tl.constexpr,
    APART: tl.constexpr,
    TYPE: tl.constexpr,
    PDL: tl.constexpr,
):
    """grid (ceil(M / BLOCK_M) * ceil(N / BLOCK_N),). TYPE: that of x."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    high = tl.cdiv(M, BLOCK_M)
    together = GROUP * tl.cdiv(N, BLOCK_N)
    first = tl.program_id(0) // together * GROUP
    rows = tl.minimum(high - first, GROUP)
    place = tl.program_id(0) % together
    at_m = (first + place % rows) * BLOCK_M
    at_n = place // rows * BLOCK_N
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        x = x_box.load([at_m, start])
        w = w_box.load([at_n, start])
        acc = tl.dot(x, w.T, acc, input_precision="ieee")
        if SEVERAL:  # noqa: SIM102 (told when compiled, and only then)
            if (start + BLOCK_K) % K_SHARE == 0:
                total += acc
                acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if not SEVERAL:
        total = acc
    m = at_m + tl.arange(0, BLOCK_M)
    n = at_n + tl.arange(0, BLOCK_N)
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    if RESIDUAL:
        if APART:
            total = total.to(TYPE).to(tl.float32)
        total += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)


def tall(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    block_m: int,
    block_n: int,
    block_k: int,
    stages: int,
    warps: int,
    split: int,
    group: int = 16,
    residual: Tensor | None = None,
    apart: bool = False,
    pdl: bool = False,
) -> None:
    """out = x @ weight.T (+ residual). x: [M, K] contiguous; weight: [N, K]; out may be residual.

    apart: what a residual is added to is rounded to x's dtype first. Raises ValueError where a
    share of K is not whole steps."""
    (rows, width), columns = x.shape, weight.shape[0]
    if width % (split * block_k):
        raise ValueError(f"{split} shares of {width} in steps of {block_k}")
    if (residual is None or apart) and takes(x, out, split):
        from quire.kernels.linear import hopper_tall  # Gluon: not in every Triton

        for groups in SHARES if x.is_meta else (groups_of(rows, columns, SHARES),):
            hopper_tall.tall(x, weight, out, groups, split=split, residual=residual, pdl=pdl)
        return
    grid = (triton.cdiv(rows, block_m) * triton.cdiv(columns, block_n),)
    _tall_kernel[grid](
        TensorDescriptor(x, [rows, width], [width, 1], [block_m, block_k]),
        TensorDescriptor(weight, [columns, width], [width, 1], [block_n, block_k]),
        out,
        out if residual is None else residual,
        rows,
        columns,
        width,
        width // split,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        GROUP=group,
        SEVERAL=split > 1,
        STAGES=stages,
        RESIDUAL=residual is not None,
        APART=apart,
        TYPE=tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float16,
        PDL=pdl,
        num_warps=warps,
        launch_pdl=pdl,
    )
