"""The numbers of rows with which exact mode calls the library, and results with room for them.

Invariant: however many rows a product has, the library is called with one of the few numbers in
`library_rows`. The content of the padding rows does not matter: a tensor whose storage is long
enough (`new_rows`) is multiplied in place, any other is copied.
"""

from torch import Tensor

BEYOND = 1 << 30  # more rows than any step has
# Up to so many rows the library is asked for a multiple of the second number: among these are the
# tokens of the prompts that are captured.
_LIBRARY_STEPS = ((512, 64), (1024, 128), (4096, 256), (8192, 512), (BEYOND, 1024))


def library_rows(rows: int) -> int:
    """The number of rows, padding included, that the library is asked for in place of `rows`."""
    step = next(step for most, step in _LIBRARY_STEPS if rows <= most)
    return -(-rows // step) * step


def new_rows(like: Tensor, rows: int, *shape: int) -> Tensor:
    """An empty tensor [rows, *shape] of `like`'s dtype and device, with room for `library_rows`."""
    return like.new_empty(library_rows(rows), *shape)[:rows]


def padded(x: Tensor, rows: int) -> Tensor:
    """x: [T, K] contiguous -> [rows, K], with any numbers in the rows behind: what lies there, if
    x's storage goes so far."""
    count, width = x.shape
    if count == rows:
        return x
    room = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()
    if room >= rows * width:
        return x.as_strided((rows, width), (width, 1))
    copied = x.new_empty(rows, width)
    copied[:count] = x
    return copied
