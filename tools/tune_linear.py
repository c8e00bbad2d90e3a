"""Finds the fastest kernel for each product, and writes the card's table (kernels/linear/tables).

    python tools/tune_linear.py --shape 0.6B 8B            # on the GPU; about three minutes
    python tools/tune_linear.py --shape 0.6B --rows 1 8 --dry-run

Each candidate is timed with what stands around it in the model (norm, SiLU·mul, residual), in a
captured chain over distinct weights (cold caches), and checked against torch's product. Entries of
shapes that were not asked for stay in the table as they are. Kernels are compiled in forked
processes before the device is touched.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import torch
from common import COPY_BYTES, capture, machine, precompile, replay_us, versions
from linear_candidates import SPLITS, Product, candidates, products
from torch import Tensor

from quire.kernels import support
from quire.kernels.linear import linear, skinny, tuning
from quire.kernels.linear.tuning import Gemv, Library, Variant

SHAPES = ("0.6B", "1.7B", "4B", "8B", "14B", "32B", "72B")
COLD_BYTES = 200 << 20  # weights of one chain: well above the L2 cache
SHARE_COST = 1.03  # what one number of shares for all rows may cost
MARGIN = 1.01  # a candidate must beat an earlier (simpler) one by this


def _call(
    variant: Variant, product: Product, tensors: dict[str, Tensor], weight: Tensor, pdl: bool
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
        pdl=pdl and tuning.chains(weight, tensors["x"].shape[0]),
    )


def tensors_of(product: Product, rows: int, device: str) -> dict[str, Tensor]:
    """What a product is called with, and stands around it."""

    def new(*shape: int) -> Tensor:
        empty = torch.empty(*shape, dtype=torch.bfloat16, device=device)
        return empty if device == "meta" else empty.normal_()

    return {
        "x": new(rows, product.k),
        "norm": new(product.k),
        "residual": new(rows, product.columns),
        "counters": skinny.new_counters(torch.device(device)),
    }


def _compilations(todo: list[tuple[Product, int]], pdl: bool) -> list[Callable[[], object]]:
    """One call on meta tensors for every distinct kernel that the candidates need."""
    seen: set[Any] = set()
    calls: list[Callable[[], object]] = []
    for product, rows in todo:
        tensors = tensors_of(product, rows, "meta")
        weight = torch.empty(product.n, product.k, dtype=torch.bfloat16, device="meta")
        for variant in candidates(product, rows, pdl):
            around = (product.norm, product.residual, product.silu, product.out_dtype)
            exact = (rows, product.k) if isinstance(variant, Gemv) else ()
            if variant == Library() or (variant, around, exact) in seen:
                continue
            seen.add((variant, around, exact))
            calls.append(lambda v=variant, p=product, t=tensors, w=weight: _call(v, p, t, w, pdl))
    return calls


class Bench:
    """Times candidates over weights cut from one large random buffer."""

    def __init__(self, largest: int, pdl: bool) -> None:
        self._buffer = torch.empty(largest, dtype=torch.bfloat16, device="cuda").normal_(std=0.02)
        self._pdl = pdl

    def weights(self, product: Product) -> list[Tensor]:
        """Distinct weights, together well above the L2 cache."""
        size = product.n * product.k
        count = max(1, min(28, -(-COLD_BYTES // (2 * size)), self._buffer.numel() // size))
        return [self._buffer[i * size : (i + 1) * size].view(product.n, -1) for i in range(count)]

    def time(
        self,
        variant: Variant,
        product: Product,
        tensors: dict[str, Tensor],
        wanted: Tensor | None,
    ) -> float | None:
        """Microseconds a call; None if the variant does not run or is wrong."""
        weights = self.weights(product)
        residual = tensors["residual"].clone()
        try:
            if wanted is not None:
                fresh = tensors | {"residual": tensors["residual"].clone()}
                found = _call(variant, product, fresh, weights[0], self._pdl)
                if not _close(found, wanted):
                    print(f"WRONG: {product.name} {variant}", flush=True)
                    return None

            def chain() -> None:
                for weight in weights * max(1, 8 // len(weights)):
                    _call(variant, product, tensors, weight, self._pdl)

            graph = capture(chain)
        except Exception as error:
            print(f"failed: {product.name} {variant}: {error!r:.120}", flush=True)
            return None
        calls = len(weights) * max(1, 8 // len(weights))
        times = replay_us(graph, 5)
        tensors["residual"].copy_(residual)  # what was added to it would make the next one wrong
        return statistics.median(times) / calls

    def all(self, product: Product, rows: int) -> list[tuple[float, Variant]]:
        """(microseconds, variant) of every candidate that runs and is right, the library first."""
        tensors = tensors_of(product, rows, "cuda")
        fresh = tensors | {"residual": tensors["residual"].clone()}
        wanted = _call(Library(), product, fresh, self.weights(product)[0], self._pdl)
        found: list[tuple[float, Variant]] = []
        for variant in candidates(product, rows, self._pdl):
            time_us = self.time(variant, product, tensors, wanted)
            if time_us is not None:
                found.append((time_us, variant))
        return found


Timed = tuple[float, Variant]


def best(found: list[Timed]) -> Timed:
    """The fastest, where a later candidate must beat an earlier (simpler) one by the margin."""
    winner = found[0]
    for candidate in found[1:]:
        if candidate[0] * MARGIN < winner[0]:
            winner = candidate
    return winner


def with_shares(found: list[Timed], split: int) -> list[Timed]:
    """What sums K in so many shares; a matrix-vector kernel has an order of its own."""
    return [one for one in found if isinstance(one[1], Gemv) or one[1].split == split]


def one_split(by_rows: dict[int, list[Timed]]) -> tuple[int, dict[int, Timed]]:
    """The number of shares of K that costs a weight least over all rows, and each rows' choice:
    with that number, unless it costs more than `SHARE_COST` there."""
    free = {rows: best(found) for rows, found in by_rows.items()}
    costs = {}
    for split in SPLITS:
        kept = {rows: with_shares(found, split) for rows, found in by_rows.items()}
        if all(kept.values()):
            costs[split] = max(best(kept[rows])[0] / free[rows][0] for rows in kept)
    split = min(costs, key=lambda s: (costs[s], s))
    chosen = {}
    for rows, found in by_rows.items():
        shared = best(with_shares(found, split))
        chosen[rows] = shared if shared[0] <= SHARE_COST * free[rows][0] else free[rows]
    return split, chosen


def _close(found: Tensor, wanted: Tensor) -> bool:
    error = (found.float() - wanted.float()).norm() / wanted.float().norm()
    return bool(error < 1e-2)


def _merge(entries: list[dict[str, Any]], path: Path) -> None:
    """Put new entries over the table's old ones of the same shape and rows."""
    table = json.loads(path.read_text()) if path.exists() else {"shapes": []}
    shapes = {(e["n"], e["k"]): e for e in table["shapes"]}
    for entry in entries:
        old = shapes.get((entry["n"], entry["k"]), {})
        for key in ("rows", "us", "library_us", "us_by_split"):
            merged = old.get(key, {}) | entry[key]
            entry[key] = dict(sorted(merged.items(), key=lambda item: int(item[0])))
        shapes[(entry["n"], entry["k"])] = entry
    table["shapes"] = list(shapes.values())
    table["measured_on"] = {"machine": machine(), "versions": versions()}
    path.write_text(json.dumps(table, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tune the products' kernels.")
    parser.add_argument("--shape", nargs="+", default=["0.6B", "8B"], choices=SHAPES)
    parser.add_argument("--ranks", type=int, default=1, help="that share the models")
    parser.add_argument("--rows", nargs="+", type=int, default=list(tuning.ROW_BUCKETS))
    parser.add_argument("--plain", action="store_true", help="without dependent launch")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    parser.add_argument("--compile-only", action="store_true", help="no device is needed")
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--out", type=Path, default=None, help="default: the card's own table")
    options = parser.parse_args()
    unknown = set(options.rows) - set(tuning.ROW_BUCKETS)
    if unknown:
        parser.error(f"--rows {sorted(unknown)}: the table's buckets are {tuning.ROW_BUCKETS}")
    return options


def _tuned(bench: Bench, product: Product, all_rows: list[int]) -> dict[str, Any]:
    """A product's entry of the table, measured."""
    entry: dict[str, Any] = {"name": product.name, "n": product.n, "k": product.k}
    entry |= {"rows": {}, "us": {}, "library_us": {}, "us_by_split": {}}
    floor = product.n * product.k * 2 / COPY_BYTES * 1e6
    print(f"{product.name} {product.n} x {product.k}, floor {floor:.2f} us", flush=True)
    by_rows = {rows: bench.all(product, rows) for rows in all_rows}
    split, chosen = one_split(by_rows)
    for rows, (best_us, variant) in chosen.items():
        found = by_rows[rows]
        entry["rows"][str(rows)] = tuning.to_json(variant)
        entry["us"][str(rows)] = round(best_us, 2)
        entry["library_us"][str(rows)] = round(found[0][0], 2)
        entry["us_by_split"][str(rows)] = {
            str(s): round(best(kept)[0], 2) for s in SPLITS if (kept := with_shares(found, s))
        }
        print(
            f"  {rows:4}: {best_us:7.2f} us  library {found[0][0]:7.2f}  {variant}"
            f"  by shares {entry['us_by_split'][str(rows)]}",
            flush=True,
        )
    print(f"  {split} shares of K", flush=True)
    return entry


def main() -> None:
    options, begun = _options(), time.perf_counter()
    pdl = not options.plain
    todo = {
        (p.n, p.k): p for shape in options.shape for p in products(shape, options.ranks)
    }.values()
    pairs = [(product, rows) for product in todo for rows in options.rows]
    calls = _compilations(pairs, pdl)
    faults = precompile(calls, options.processes)
    print(f"{len(calls)} kernels, {len(faults)} failed: {time.perf_counter() - begun:.0f} s")
    print("\n".join(faults[:5]), flush=True)
    if options.compile_only:
        return
    chip = support.card_name(torch.device("cuda")).split()[1].lower()
    path = options.out or tuning.TABLES / f"{chip}.json"
    bench = Bench(max(max(p.n * p.k for p in todo), COLD_BYTES // 2 + (64 << 20)), pdl)
    for product in todo:
        entry = _tuned(bench, product, options.rows)
        print(f"  [{time.perf_counter() - begun:.0f} s]", flush=True)
        if not options.dry_run:
            _merge([entry], path)


if __name__ == "__main__":
    main()
