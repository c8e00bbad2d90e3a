"""Whole blocks of one layer's cache copied to others, in Triton.

Invariant: no target is a source of the same call (a plan copies into blocks it has just
allocated), so the order of the copies does not matter.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_ELEMENTS = 4096  # a program


# Where the host lays the pairs in a step's upload is no part of what is compiled.
@triton.jit(do_not_specialize_on_alignment=["sources_ptr", "targets_ptr"])
def _copy_kernel(
    k_ptr, v_ptr, sources_ptr, targets_ptr, SIZE: tl.constexpr, CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """grid (SIZE / CHUNK, C); SIZE: elements a block."""
    offsets = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    ok = offsets < SIZE
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    source = tl.load(sources_ptr + tl.program_id(1)).to(tl.int64) * SIZE
    target = tl.load(targets_ptr + tl.program_id(1)).to(tl.int64) * SIZE
    k = tl.load(k_ptr + source + offsets, mask=ok)
    v = tl.load(v_ptr + source + offsets, mask=ok)
    tl.store(k_ptr + target + offsets, k, mask=ok)
    tl.store(v_ptr + target + offsets, v, mask=ok)


def copy_blocks(
    k_cache: Tensor, v_cache: Tensor, source: Tensor, target: Tensor, *, pdl: bool = False
) -> None:
    """Copy blocks source[i] to target[i], keys and values.

    caches: [blocks, Hkv, block_size, D], contiguous; source, target: [C] integers, no target also
    a source.
    """
    size = k_cache[0].numel()
    launch: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    if source.shape[0]:
        _copy_kernel[(triton.cdiv(size, _ELEMENTS), source.shape[0])](
            k_cache, v_cache, source, target, SIZE=size, CHUNK=_ELEMENTS, PDL=pdl, **launch
        )
