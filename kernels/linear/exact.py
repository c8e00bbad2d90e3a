"""One order of sums for each weight: a row's product has the same bits whatever rows stand by it.

Invariant: K is cut into S equal shares, S a property of the weight's shape on a card (`Order`,
read from the card's table; one share where the table says nothing). A share is summed in order by
the matrix units, in fp32; shares are added in order. Before SiLU·mul, and before a residual is
added, the product is rounded to 16 bits, as where it is stored between two kernels. Of the launches
that `tuning` knows those are chosen that keep this order:

    tiles       (skinny.py) of any height, with S shares
    side        (side.py) of up to 16 rows, S from 2 to 8
    whole       (whole.py) of up to 16 rows, one share
    stacked     (stacked.py) of up to 16 rows, S of 1 and more
    boxed       (boxed.py) of some 33 to 64 rows, with S shares
    tall        (tall.py) of many rows, S of 2 and more
    library     a product for each share: it keeps the order where it does not split K by itself,
                which only the card can tell (`check.py`): where it does, a tile takes its place.
                It may split K at one number of rows and not at the next: it is only ever asked for
                the numbers that `padding.py` knows, each of which the check has compared. Where
                it adds a residual to what it has rounded already, which the check tells as well,
                that is no kernel of its own

Matrix-vector kernels (gemv.py) sum along trees of their own and are never chosen. A norm scales
before the sum, in one order (norms.py), apart from the product or inside it; one that scales after
the sum is never chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from quire.kernels.linear import tuning
from quire.kernels.linear.tuning import HOME, Gemv, Library, Skinny, Tall, Tile, Variant
from quire.kernels.padding import BEYOND
from quire.kernels.support import HOPPER_SHARED

MANY = (512, 1024, 2048, 4096, 8192)  # buckets of rows that exact mode tells apart as well
BUCKETS = (*tuning.ROW_BUCKETS, *MANY)


@dataclass(frozen=True)
class Order:
    """How a weight's products are summed, and by what. split: shares of K; rows: what was measured
    to be best by buckets of rows, all in this order."""

    split: int
    rows: Mapping[int, Variant]


def bucket_of(rows: int) -> int:
    """The bucket that so many rows belong to."""
    return next((bucket for bucket in BUCKETS if rows <= bucket), BEYOND)


def keeps(variant: Variant, k: int, split: int) -> bool:
    """Whether a launch sums K in `split` shares, in order, as far as can be told without a card."""
    if isinstance(variant, Gemv) or variant.split != split:
        return False
    if isinstance(variant, Library):
        return k % split == 0
    if isinstance(variant, Skinny) and variant.fuse_norm:
        return False
    whole = k % (split * variant.block_k) == 0
    return whole or (split == 1 and isinstance(variant, Skinny))


@cache
def order_of(n: int, k: int, card: str = HOME) -> Order:
    """The order of a weight [n, k], and what keeps it by the card's table: of the table's own
    exact rows, or of the others those that do."""
    listed = tuning.exact_table(card).get((n, k))
    if listed is not None:
        return Order(listed.split, listed.rows)
    rows = tuning.table(card).get((n, k), {})
    return Order(1, {bucket: v for bucket, v in rows.items() if keeps(v, k, 1)})


def tile(n: int, k: int, bucket: int, split: int, shared: int = HOPPER_SHARED) -> Tile:
    """The tile for so many rows where nothing was measured, or the library fails.

    shared: bytes of shared memory that a program may have."""
    found: Tile
    if bucket > tuning.ROW_BUCKETS[-1] and split > 1:
        found = Tall(128, 128, 64, stages=4, warps=8, split=split)
    elif bucket > 64:
        found = Skinny(128, 128, 64, swap=False, stages=4, warps=8, split=split)
    elif bucket > 32:
        found = Skinny(64, 64, 64, swap=True, stages=8, warps=4, split=split)
    elif bucket > 16:
        found = Skinny(32, 64, 128, swap=True, stages=6, warps=4, split=split)
    elif n <= 2048:
        found = Skinny(16, 16, 256, swap=False, stages=4, warps=4, split=split)
    else:
        found = Skinny(16, 64, 128, swap=True, stages=6, warps=4, split=split)
    if split > 1 and k % (split * found.block_k):
        found = replace(found, block_k=64)
    return replace(found, stages=max(1, min(found.stages, shared // found.stage_bytes)))


def choose(
    n: int, k: int, rows: int, shared: int = HOPPER_SHARED, card: str = HOME, *, own: bool = False
) -> Variant:
    """The launch for a weight [n, k] and so many rows. own: none of the library's."""
    order, bucket = order_of(n, k, card), bucket_of(rows)
    found = order.rows.get(min(bucket, BUCKETS[-1]))
    if found is None and bucket > tuning.ROW_BUCKETS[-1] and order.split == 1:
        found = Library(joins=True)
    if found is None or not tuning.fits(found, shared) or (own and isinstance(found, Library)):
        return tile(n, k, bucket, order.split, shared)
    return found


@dataclass(frozen=True)
class Cost:
    """How much longer products of a step take in these orders, at worst over the numbers of rows in
    the card's own table: 0.03 is 3%. whole: the table has all of them."""

    worst: float
    whole: bool


def cost(weights: Mapping[tuple[int, int], int], head: tuple[int, int], card: str) -> Cost:
    """weights: how many a step has of each [n, k], the head included, which has no more rows than
    those that sample."""
    table = tuning.timings(card)
    worst, whole = -1.0, True
    for bucket in BUCKETS:
        free = exact = 0.0
        for shape, count in weights.items():
            at = min(bucket, tuning.ROW_BUCKETS[-1]) if shape == head else bucket
            times = table[shape].at(at) if shape in table else None
            if times is None:
                whole = False
                break
            free, exact = free + count * times[0], exact + count * times[1]
        else:
            worst = max(worst, exact / free - 1)
    return Cost(worst, whole)


class ExactProducts:
    """What an engine chooses by. `drop` and `give_up` are what the card's check has to say."""

    def __init__(self) -> None:
        self.on = True
        self._own: set[tuple[int, int, int]] = set()
        self._apart: set[tuple[int, int, int]] = set()

    def choose(
        self, n: int, k: int, rows: int, shared: int = HOPPER_SHARED, card: str = HOME
    ) -> Variant:
        """Like the function, without what was dropped."""
        where = n, k, bucket_of(rows)
        found = choose(n, k, rows, shared, card, own=where in self._own)
        if isinstance(found, Library) and where in self._apart:
            return replace(found, joins=False)
        return found

    def drop(self, n: int, k: int, bucket: int, variant: Library) -> None:
        """For this weight and bucket of rows, no longer add the residual within the library's
        product; or, if that was so already, do not use the library."""
        (self._apart if variant.joins else self._own).add((n, k, bucket))

    def give_up(self) -> None:
        """No exact launches any more: the fast ones."""
        self.on = False
