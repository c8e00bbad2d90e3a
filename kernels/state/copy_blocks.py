"""Whole blocks of the cache copied to others, all layers in one launch, in Triton.

Invariant: no target is a source of the same call (a plan copies into blocks it has just
allocated), so the order of the copies does not matter.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import math
from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_ELEMENTS = 4096  # a program


# Where the host lays the pairs in a step's upload is no part of what is compiled, nor is the size
# of the cache.
@triton.jit(
    do_not_specialize=["num_blocks"],
    do_not_specialize_on_alignment=["sources_ptr", "targets_ptr"],
)
def _copy_kernel(
    k_ptr, v_ptr, sources_ptr, targets_ptr, num_blocks, SIZE: tl.constexpr, CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """grid (SIZE / CHUNK, C, layers); SIZE: elements a block of one layer."""
    offsets = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    ok = offsets < SIZE
    layer = tl.program_id(2).to(tl.int64) * num_blocks  # its first block
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    source = (layer + tl.load(sources_ptr + tl.program_id(1))) * SIZE
    target = (layer + tl.load(targets_ptr + tl.program_id(1))) * SIZE
    k = tl.load(k_ptr + source + offsets, mask=ok)
    v = tl.load(v_ptr + source + offsets, mask=ok)
    tl.store(k_ptr + target + offsets, k, mask=ok)
    tl.store(v_ptr + target + offsets, v, mask=ok)


def copy_blocks(
    k_cache: Tensor, v_cache: Tensor, source: Tensor, target: Tensor, *, pdl: bool = False
) -> None:
    """Copy blocks source[i] to target[i] in every layer, keys and values.

    caches: [layers, blocks, Hkv, block_size, D], contiguous; source, target: [C] integers, no
    target also a source.
    """
    layers, blocks, *block = k_cache.shape
    size, count = math.prod(block), source.shape[0]
    launch: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    if count:
        _copy_kernel[(triton.cdiv(size, _ELEMENTS), count, layers)](
            k_cache, v_cache, source, target, blocks,
            SIZE=size, CHUNK=_ELEMENTS, PDL=pdl, **launch,
        )  # fmt: skip
