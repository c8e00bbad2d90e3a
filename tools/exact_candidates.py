"""What tune_exact.py tries for a product: launches whose K is summed in one number of shares."""

import dataclasses
from collections.abc import Iterator, Sequence

from linear_candidates import Product

from quire.kernels.linear import exact, side, stacked, tuning
from quire.kernels.linear.tuning import Library, Side, Skinny, Stacked, Tall, Variant, Whole
from quire.kernels.support import HOPPER_SHARED

SPLITS = (1, *side.SPLITS)
PREFETCHED = 24 << 20  # bytes of a weight, up to which L2 is asked for it early
_STACKED_ROWS = 8  # beyond which x leaves no registers
_MAX_PROGRAMS = 1056  # of a product whose shares are programs of their own


def candidates(product: Product, rows: int, split: int) -> list[Variant]:
    """Those that can run with so many shares of K, the simplest first."""
    tried: list[Variant] = [Library(split)] if rows > 64 or split == 1 else []
    if split == 1 and product.residual:
        tried.append(Library(joins=True))
    tried += [*_few(product, rows, split), *_tiles(product, rows, split), *_many(rows, split)]
    if split == 1 and rows <= tuning.SIDE_ROWS:
        tried += _whole(product)
    share = product.k // split
    stacks = not product.silu and stacked.takes(share, split, norm=product.norm)
    if rows <= _STACKED_ROWS and stacks:
        tried += [Stacked(share, split, early=early) for early in (False, True)]
    return [
        variant
        for variant in dict.fromkeys(tried)
        if exact.keeps(variant, product.k, split) and tuning.fits(variant, HOPPER_SHARED)
    ]


def splits(product: Product, tried: Sequence[int]) -> list[int]:
    """Of these numbers of shares those that can be: more than one where a residual alone stands
    around, as others are the library's in long prompts."""
    several = product.residual
    return [s for s in tried if s == 1 or (several and product.k % (s * 64) == 0)]


def _few(product: Product, rows: int, split: int) -> Iterator[Variant]:
    if rows > tuning.SIDE_ROWS or split == 1:
        return
    for block_n, block_k, stages in ((16, 64, 5), (16, 128, 4), (32, 64, 4)):
        found = Side(block_n, block_k, stages=stages, split=split)
        while found.stages > 2 and not tuning.fits(found, HOPPER_SHARED):
            found = dataclasses.replace(found, stages=found.stages - 1)
        yield found
        if product.n * product.k * 2 < PREFETCHED:
            yield dataclasses.replace(found, prefetch=True)
    for block_k in (64, 128):
        steps = product.k // (split * block_k)
        for early in (False, True):
            yield Side(16, block_k, stages=steps, split=split, hold=True, early=early)


def _whole(product: Product) -> Iterator[Variant]:
    for block_n, block_k in ((16, 256), (32, 256), (32, 128)):
        if product.k % block_k == 0 and block_n * product.k <= 1 << 15:  # in registers
            for early in (False, True):
                yield Whole(block_n, block_k, product.k // block_k, 4, early=early)


def _tiles(product: Product, rows: int, split: int) -> Iterator[Variant]:
    for tile in _by_rows(rows, split):
        programs = -(-product.n // (tile.block_n * tile.tiles)) * -(-rows // tile.block_m)
        if split > 1 and programs * split > _MAX_PROGRAMS:
            continue
        yield dataclasses.replace(tile, split=split)


def _by_rows(rows: int, split: int) -> Iterator[Skinny]:
    """Of skinny.py's tiles those that win most often; with several shares up to 16 rows are
    rather side.py's."""
    if rows <= 32:
        yield Skinny(16, 64, 128, swap=True, stages=6, warps=4)
    if rows <= 16:
        yield Skinny(16, 32, 128, swap=False, stages=4, warps=4)
        if split == 1:
            yield Skinny(16, 64, 256, swap=True, stages=5, warps=4)
            yield Skinny(16, 64, 128, swap=True, stages=4, warps=4, tiles=3)
            yield Skinny(16, 16, 256, swap=False, stages=4, warps=2)
    elif rows <= 32:
        yield Skinny(32, 64, 128, swap=True, stages=6, warps=4)
        yield Skinny(32, 64, 128, swap=True, stages=3, warps=4, tiles=3)
    elif rows <= 64:
        yield Skinny(32, 64, 128, swap=True, stages=6, warps=4)
        yield Skinny(32, 64, 128, swap=True, stages=5, warps=4)  # leaves room for what follows
        yield Skinny(64, 64, 64, swap=True, stages=8, warps=4)
        yield Skinny(64, 64, 128, swap=True, stages=3, warps=8, tiles=3)
        yield Skinny(64, 128, 64, swap=False, stages=4, warps=4)
        yield Skinny(64, 32, 128, swap=False, stages=8, warps=4)
    elif rows <= 512:
        yield Skinny(64, 64, 64, swap=True, stages=8, warps=4)
        yield Skinny(64, 128, 64, swap=True, stages=6, warps=4)
        yield Skinny(128, 128, 64, swap=False, stages=4, warps=8)
        yield Skinny(128, 256, 64, swap=False, stages=3, warps=8)


def _many(rows: int, split: int) -> Iterator[Variant]:
    if rows > 64:
        yield Tall(64, 128, 64, stages=6, warps=4, split=split)
        yield Tall(128, 128, 64, stages=4, warps=8, split=split)
    if 256 < rows <= 1024:
        yield Tall(128, 128, 64, stages=3, warps=4, split=split)
    if rows > 1024:
        yield Tall(128, 256, 64, stages=4, warps=8, split=split)
        yield Tall(128, 256, 64, stages=4, warps=8, split=split, group=8)
        yield Tall(128, 256, 64, stages=4, warps=8, split=split, group=4)
