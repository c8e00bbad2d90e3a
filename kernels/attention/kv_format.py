"""What the cache holds of keys and values, as the kernels write it: see `reference/kv_format.py`.

Invariant: every kernel that writes the cache rounds by `held`, so that all of them write the same
bits. Kernels widen what they read right after the load, to the queries' dtype or (`pairs.py`) to
fp16, which is exact.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

from quire.kernels.reference.fp8 import LARGEST

_LARGEST = tl.constexpr(LARGEST)


@triton.jit
def held(x, CACHE: tl.constexpr):
    """x, of the activations' dtype, in the cache's (CACHE). Both bounds are said here: no number
    depends on how a card converts what is beyond them."""
    if CACHE.is_fp8e4nv():
        wide = x.to(tl.float32)
        number = tl.abs(wide) < float("inf")  # false for a NaN too
        near = tl.where(wide > _LARGEST, _LARGEST, tl.where(wide < -_LARGEST, -_LARGEST, wide))
        x = tl.where(number, near, float("nan"))
    return x.to(CACHE)
