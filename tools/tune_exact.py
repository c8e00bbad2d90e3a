"""Finds what exact mode launches for each product, and writes it into the card's table.

    python tools/tune_exact.py --shape 0.6B 8B [--seconds 105] [--only o down]     # on the GPU

Of each weight every number of shares of K is tried over all rows, 1 to 8192: the one that loses
least beside what the fast mode launches, over all buckets of rows, is its order
(kernels/linear/exact.py). What has other bits than one tile of all rows is left out. The fast
mode's own table has to know the weights (tools/tune_linear.py); few rows are tuned once more behind
it, between other products (tools/tune_layers.py).
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import torch
from common import capture, machine, precompile, replay_us, versions
from exact_candidates import SPLITS, candidates, splits
from linear_candidates import Product, products
from torch import Tensor
from tune_linear import COLD_BYTES, SHAPES, tensors_of

from quire.kernels import support
from quire.kernels.linear import exact, linear, tuning
from quire.kernels.linear.check import Bits, Fusion
from quire.kernels.linear.check import tried as tried_at
from quire.kernels.linear.tuning import Gemv, Library, Side, Stacked, Variant, Whole
from quire.kernels.support import HOPPER_SHARED

RUNS = 3

Timed = tuple[float, Variant]
Kept = dict[int, Timed]  # by buckets of rows


@dataclass(frozen=True)
class Mode:
    """How a product is launched: exact mode adds residuals apart, and chains all launches."""

    exact: bool

    def call(
        self, variant: Variant, product: Product, tensors: dict[str, Tensor], weight: Tensor
    ) -> Tensor:
        return linear.run(
            variant,
            tensors["x"],
            weight,
            norm_weight=tensors["norm"] if product.norm else None,
            eps=1e-6,
            residual=tensors["residual"] if product.residual else None,
            silu=product.silu,
            out_dtype=product.out_dtype,
            counters=tensors["counters"],
            apart=self.exact,
            pdl=self.exact or tuning.chains(weight, tensors["x"].shape[0]),
        )


EXACT, FAST = Mode(exact=True), Mode(exact=False)


def buckets(product: Product) -> tuple[int, ...]:
    """The rows that a product is tuned for: a head's are those that sample."""
    return tuning.ROW_BUCKETS if product.out_dtype is not None else exact.BUCKETS


def fast(product: Product, rows: int, card: str) -> Variant:
    """What is launched where exact mode is off."""
    shape = (product.n, product.k, rows)
    return tuning.choose(*shape, torch.bfloat16, product.silu, HOPPER_SHARED, card)


def compilations(
    todo: Sequence[Product], card: str, tried: Sequence[int]
) -> list[Callable[[], object]]:
    """One call on meta tensors for every distinct kernel that tuning launches."""
    seen: set[Any] = set()
    calls: list[Callable[[], object]] = []
    for product in todo:
        weight = torch.empty(product.n, product.k, dtype=torch.bfloat16, device="meta")
        around = (product.norm, product.residual, product.silu, product.out_dtype)
        orders = splits(product, tried)
        tiles = [exact.tile(product.n, product.k, exact.BEYOND, s) for s in orders]
        for rows in buckets(product):
            tensors = tensors_of(product, rows, "meta")
            wanted = [(EXACT, v) for s in orders for v in candidates(product, rows, s)]
            wanted += [(EXACT, tile) for tile in tiles]
            for mode, variant in [*wanted, (FAST, fast(product, rows, card))]:
                special: Any = isinstance(variant, Side | Whole) and rows <= 8
                if isinstance(variant, Gemv | Stacked):
                    special = (rows, product.k)
                key = (mode, variant, around, special)
                if key not in seen and variant != Library():
                    seen.add(key)
                    calls.append(
                        lambda m=mode, v=variant, p=product, t=tensors, w=weight: m.call(v, p, t, w)
                    )
    return calls


class Bench:
    """Times launches over weights cut from one large random buffer."""

    def __init__(self, largest: int) -> None:
        size = max(largest, COLD_BYTES // 2 + (64 << 20))
        self._buffer = torch.empty(size, dtype=torch.bfloat16, device="cuda").normal_(std=0.02)

    def time(self, mode: Mode, variant: Variant, product: Product, rows: int) -> float | None:
        """Microseconds a call, in a captured chain over cold weights; None: it does not run."""
        size = product.n * product.k
        count = max(1, min(28, -(-COLD_BYTES // (2 * size)), self._buffer.numel() // size))
        parts = [self._buffer[i * size : (i + 1) * size].view(product.n, -1) for i in range(count)]
        chain = parts * max(1, (8 if rows <= 512 else 3) // count)
        chain = chain if rows <= 512 else chain[:6]
        tensors = tensors_of(product, rows, "cuda")
        try:
            graph = capture(lambda: [mode.call(variant, product, tensors, w) for w in chain])
            return statistics.median(replay_us(graph, RUNS)) / len(chain)
        except Exception as error:
            print(f"failed: {product.name} {rows} {variant}: {error!r:.90}", flush=True)
            return None


class Tuning:
    """The orders of one product, each with what is fastest in it."""

    def __init__(self, product: Product, bench: Bench, card: str, tried: Sequence[int]) -> None:
        self.product, self._bench = product, bench
        self.free = {
            rows: bench.time(FAST, fast(product, rows, card), product, rows) or math.inf
            for rows in buckets(product)
        }
        self.kept = {split: self._kept(split) for split in splits(product, tried)}

    def ratios(self, split: int) -> dict[int, float]:
        """By how much each bucket takes longer; 1.0 is as long."""
        kept = self.kept[split]
        return {rows: kept[rows][0] / self.free[rows] if rows in kept else math.inf
                for rows in self.free}  # fmt: skip

    def best(self) -> int:
        """The number of shares that loses least, all buckets of rows together; what is won in some
        of them pays for no other."""
        losses = {
            split: sum(max(ratio - 1, 0.0) for ratio in self.ratios(split).values())
            for split in self.kept
        }
        return min(losses, key=lambda split: (losses[split], split))

    def entry(self, split: int) -> dict[str, Any]:
        """The `exact` part of the table's entry."""
        kept = self.kept[split]
        return {
            "split": split,
            "rows": {str(r): tuning.to_json(variant) for r, (_, variant) in kept.items()},
            "us": {str(r): round(us, 2) for r, (us, _) in kept.items()},
            "free_us": {str(r): round(us, 2) for r, us in self.free.items()},
        }

    def _kept(self, split: int) -> Kept:
        product, rows_of = self.product, buckets(self.product)
        weight = torch.empty(product.n, product.k, dtype=torch.bfloat16, device="cuda")
        around = (product.norm, product.residual, product.silu, product.out_dtype)
        bits = Bits(weight, Fusion(rows_of[-1], *around), split)
        kept: Kept = {}
        for least, rows in zip((0, *rows_of), rows_of, strict=False):
            timed = [
                (us, variant)
                for variant in candidates(product, rows, split)
                if (us := self._bench.time(EXACT, variant, product, rows)) is not None
            ]
            tried = sorted({least + 1, (least + 1 + rows) // 2, rows})
            ordered = sorted(timed, key=lambda one: one[0])
            same = next((one for one in ordered if _has_bits(bits, one[1], tried)), None)
            if same is not None:
                kept[rows] = same
        return kept


def _has_bits(bits: Bits, variant: Variant, rows: Sequence[int]) -> bool:
    """Whether a variant has the tile's bits; told where it is not the library that has not."""
    library = isinstance(variant, Library)
    at = bits.differ_at(variant, tried_at(variant, rows))
    if at is not None and not library:
        print(f"OTHER BITS at {at} rows: {variant}", flush=True)
    return at is None


def tune(
    todo: Sequence[Product],
    tried: Sequence[int],
    card: str,
    source: Path,
    target: Path,
    until: float,
) -> None:
    """Fill in the `exact` parts of a table until time is up. tried: numbers of shares."""
    table = json.loads(source.read_text())
    shapes = {(entry["n"], entry["k"]): entry for entry in table["shapes"]}
    bench = Bench(max(product.n * product.k for product in todo))
    for product in todo:
        entry = shapes.get((product.n, product.k))
        if entry is None or time.perf_counter() > until:
            print(f"{product.name}: " + ("not in the table" if entry is None else "no time left"))
            continue
        begun = time.perf_counter()
        found = Tuning(product, bench, card, tried)
        for split in found.kept:
            shown = " ".join(f"{r}:{100 * (x - 1):+.0f}" for r, x in found.ratios(split).items())
            print(f"{product.name} S={split} % {shown}", flush=True)
        split = found.best()
        entry["exact"] = found.entry(split)
        print(f"{product.name}: S={split} [{time.perf_counter() - begun:.1f} s]", flush=True)
        table["exact_on"] = {"machine": machine(), "versions": versions()}
        target.write_text(json.dumps(table, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Tune exact mode's products.")
    parser.add_argument("--shape", nargs="+", default=["0.6B", "8B"], choices=SHAPES)
    parser.add_argument("--only", nargs="+", default=[], help="products by their last word")
    parser.add_argument("--splits", nargs="+", type=int, default=list(SPLITS), choices=SPLITS)
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no more after these")
    parser.add_argument("--compile-only", action="store_true", help="no device is needed")
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--card", default=tuning.HOME, help="whose fast table counts")
    parser.add_argument("--out", type=Path, help="default: the card's own table")
    options = parser.parse_args()
    begun = time.perf_counter()
    found = {(p.n, p.k): p for shape in options.shape for p in products(shape)}.values()
    todo = [p for p in found if not options.only or p.name.split()[-1] in options.only]
    todo.sort(key=lambda p: not p.residual)  # those with an order to choose first
    calls = compilations(todo, options.card, options.splits)
    faults = precompile(calls, options.processes)
    took = time.perf_counter() - begun
    print(f"{len(calls)} kernels, {len(faults)} failed: {took:.0f} s", *faults[:3], flush=True)
    if options.compile_only:
        return
    card = support.card_name(torch.device("cuda"))
    path = tuning.TABLES / f"{card.split()[1].lower()}.json"
    tune(todo, options.splits, card, path, options.out or path, begun + options.seconds)


if __name__ == "__main__":
    main()
