"""Checks on the card that all launches which exact mode may choose for a weight give the same bits.

Invariant: after `check` every launch that can be chosen for the weight has been compared with one
tile that takes all rows, with everything that is fused with the product, in every row: our kernels
at the least, the middle and the most rows of a bucket, the library at every number of rows that it
is ever called with. Library launches that differ are dropped, and their replacement is compared:
the library with the residual added separately, then a tile.

On meta tensors nothing is compared; the launches are those that may happen on a card.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quire.kernels import support
from quire.kernels.linear import exact, linear, skinny
from quire.kernels.linear.exact import BUCKETS, ExactProducts
from quire.kernels.linear.tuning import Library, Variant
from quire.kernels.padding import BEYOND, library_rows


@dataclass(frozen=True)
class Fusion:
    """What is fused with a product. most: the most rows that it can have."""

    most: int
    norm: bool = False
    residual: bool = False
    silu: bool = False
    out_dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Difference:
    """A launch with different bits. rows: the least number at which they differ; kept: whether
    another launch replaces it."""

    bucket: int
    rows: int
    variant: Variant
    kept: bool


def check(weight: Tensor, fusion: Fusion, products: ExactProducts) -> list[Difference]:
    """Compare everything that `products` may choose for a weight [N, K], of which only the sizes,
    the type and the device matter; drop what differs. A difference that is not kept means that the
    weight has no exact kernel here."""
    n, k = weight.shape
    shared, card = support.shared_bytes(weight.device), support.card_name(weight.device)
    bits = Bits(weight, fusion, exact.order_of(n, k, card).split)
    found = []
    for bucket, rows in samples(fusion.most):
        variant = products.choose(n, k, rows[-1], shared, card)
        while (at := bits.differ_at(variant, tried(variant, rows))) is not None:
            found.append(Difference(bucket, at, variant, kept=isinstance(variant, Library)))
            if not isinstance(variant, Library):
                break
            products.drop(n, k, bucket, variant)
            variant = products.choose(n, k, rows[-1], shared, card)
        if weight.is_meta and isinstance(variant, Library):
            bits.differ_at(bits.tile(bucket), rows)
    return found


def samples(most: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Each bucket that up to `most` rows belong to, with the numbers of rows that are tried."""
    least = 1
    for bucket in (*BUCKETS, BEYOND):
        if least > most:
            return
        last = min(bucket, most)
        yield bucket, tuple(sorted({least, (least + last) // 2, last}))
        least = bucket + 1


def tried(variant: Variant, rows: Sequence[int]) -> Iterable[int]:
    """The numbers of rows at which a variant is tried, for the samples of a bucket: of the
    library's, where residuals join what is not padded, one less as well."""
    if not isinstance(variant, Library):
        return rows
    counts = [*library_samples(rows)]
    less = [count - 1 for count in counts if count > rows[0]] if variant.joins else []
    return [*counts, *less]


def library_samples(rows: Sequence[int]) -> Iterator[int]:
    """The numbers of rows at which the library is tried: each that it is padded to,
    between the least and the most of `rows`, and the most, padded or not."""
    count = min(library_rows(rows[0]), rows[-1])
    while count < rows[-1]:
        yield count
        count = library_rows(count + 1)
    yield rows[-1]


def twice(whole: Tensor, sign: int) -> Tensor:
    """Fill [rows, width] with random halves, the second backwards and times sign, and 0 between."""
    rows, width = whole.shape
    whole.zero_()
    if not whole.is_meta:
        generator = torch.Generator(whole.device).manual_seed(rows + width)
        drawn = torch.randn(
            rows, width // 2, generator=generator, dtype=whole.dtype, device=whole.device
        )
        whole[:, : width // 2] = drawn
        whole[:, width - width // 2 :] = drawn.flip(1).mul_(sign)
    return whole


class Bits:
    """Products of random rows by one tile, which others are compared with; twice.

    First, the second half of each row of x is its first half backwards with the other sign, and a
    weight's row is the same backwards: all that a sum leaves is what its order rounds, and no
    rounding to 16 bits afterwards can hide another order. Then ordinary rows, beside a residual of
    their size: what is fused with a product is only seen there.
    """

    def __init__(self, weight: Tensor, fusion: Fusion, split: int) -> None:
        """weight: [N, K], whose numbers do not count; split: shares of K."""
        self._fusion, self._split = fusion, split
        self._device, self._dtype, (n, k) = weight.device, weight.dtype, weight.shape
        self._size = n, k
        self._counters = skinny.new_counters(self._device)
        self._weight = self._weight_of(n, k)
        self._norm = self._twice(1, k, 1)[0] if fusion.norm else None
        self._cases = []
        for sign, size in ((-1, 0.0), (1, k**0.5)):
            x = self._twice(fusion.most, k, sign)
            before = self._twice(fusion.most, n, 1).mul_(size) if fusion.residual else None
            wanted = self._run(self.tile(BEYOND), x, before)
            self._cases.append((x, before, wanted))

    def tile(self, bucket: int) -> Any:
        """The tile for this many rows."""
        shared = support.shared_bytes(self._device)
        return exact.tile(*self._size, bucket, self._split, shared)

    def differ_at(self, variant: Any, rows: Iterable[int]) -> int | None:
        """The first of these numbers of rows at which bits are others; None: they are the same."""
        for count in rows:
            for x, before, wanted in self._cases:
                found = self._run(variant, x[:count], None if before is None else before[:count])
                if not found.is_meta and not torch.equal(found, wanted[:count]):
                    return count
        return None

    def _weight_of(self, n: int, k: int) -> Any:
        return self._twice(n, k, 1)

    def _twice(self, rows: int, width: int, sign: int) -> Tensor:
        return twice(torch.empty(rows, width, dtype=self._dtype, device=self._device), sign)

    def _run(self, variant: Any, x: Tensor, before: Tensor | None) -> Tensor:
        return self._product(
            variant,
            x,
            norm_weight=self._norm,
            eps=1e-6,
            residual=None if before is None else before.clone(),
            silu=self._fusion.silu,
            out_dtype=self._fusion.out_dtype,
            counters=self._counters,
        )

    def _product(self, variant: Any, x: Tensor, **fused: Any) -> Tensor:
        return linear.run(variant, x, self._weight, apart=True, **fused)
