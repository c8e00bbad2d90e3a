"""Chooses what is launched in few rows by whole layers, for the card's table.

    python tools/tune_layers.py --shape 0.6B 8B [--rows 1 2 4 8 16] [--mode fast]    # on the GPU

What is fastest in a chain of itself (tools/tune_exact.py, tools/tune_linear.py) may not be so
between others: what waits takes room from the kernel ahead, and what is loaded ahead takes memory
from it. So here one product after another takes each of its candidates in a captured chain of
layers, and keeps what is fastest there. Of exact mode that is in the order of sums that the table
has, and in the end bits are compared with one tile's; the fast mode may take any order.
"""

import json
import statistics
import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import torch
from common import capture, machine, precompile, replay_us, versions
from exact_candidates import candidates, splits
from linear_candidates import Product, gemvs, products
from torch import Tensor
from tune_exact import EXACT, FAST, Bench, Mode, fast
from tune_linear import SHAPES, tensors_of

from quire.engine.model.config import ModelConfig
from quire.kernels import support
from quire.kernels.attention.decode import rope_decode_attention
from quire.kernels.linear import exact, tuning
from quire.kernels.linear.check import Bits, Fusion
from quire.kernels.linear.tuning import Library, Variant

CONTEXT, BLOCK, DISTINCT, LAYERS = 1152, 64, 8, 16
TURNS, MARGIN = 3, 0.995  # MARGIN: of the time so far, that another has to beat
FAST_SPLITS = (1, 2, 4)  # shares of K
MODES = {"exact": EXACT, "fast": FAST}

Chosen = dict[str, Variant]  # by a product's name


def tried(product: Product, rows: int, mode: Mode) -> list[Variant]:
    """A product's candidates but the library's: in exact mode in the order that it has."""
    order = [exact.order_of(product.n, product.k).split]
    shares = order if mode.exact else splits(product, FAST_SPLITS)
    found = [variant for split in shares for variant in candidates(product, rows, split)]
    if not mode.exact:
        found += gemvs(product, rows)
    return [variant for variant in found if not isinstance(variant, Library)]


class Layers:
    """Layers of a model without its head, of so many rows of one token each."""

    def __init__(self, shape: str, rows: int, mode: Mode, device: str) -> None:
        self.rows, self.mode, self.products = rows, mode, products(shape)[:-1]
        config, self._device = ModelConfig.named_shape(shape), device
        self._dim, heads = config.head_dim, config.num_kv_heads
        count = 1 if device == "meta" else DISTINCT
        self._weights = [
            {p.name: self._new(p.n, p.k).mul_(p.k**-0.5) for p in self.products}
            for _ in range(count)
        ]
        width = -(-CONTEXT // BLOCK)
        blocks = 1 + rows * width
        self._caches = [
            tuple(self._new(blocks, heads, BLOCK, self._dim) for _ in "kv") for _ in range(count)
        ]
        tables = 1 + torch.arange(rows * width, dtype=torch.int32).view(rows, width)
        last = tables[:, -1].long() * BLOCK + (CONTEXT - 1) % BLOCK
        at = torch.full((rows,), CONTEXT - 1)
        self._places = [t.to(device) for t in (at, last, tables, (at + 1).int())]
        self._tensors = [tensors_of(p, rows, device) for p in self.products]
        self._head = self._new(self._dim), self._new(CONTEXT, self._dim).float()

    def step(self, chosen: Chosen, count: int = LAYERS) -> None:
        """So many layers, one after another."""
        x = self._tensors[0]["x"]
        for i in range(count):
            weights = self._weights[i % len(self._weights)]
            qkv = self._product(0, chosen, weights, x)
            heads = self._attention(qkv, *self._caches[i % len(self._caches)])
            x = self._product(1, chosen, weights, heads.view(self.rows, -1))
            inner = self._product(2, chosen, weights, x)
            x = self._product(3, chosen, weights, inner)

    def us(self, several: Sequence[Chosen]) -> list[float]:
        """Microseconds a layer, of each in turn with the others: a card's pace wanders."""
        graphs = [capture(partial(self.step, chosen)) for chosen in several]
        times: list[list[float]] = [[] for _ in several]
        for _ in range(TURNS):
            for graph, found in zip(graphs, times, strict=True):
                found += replay_us(graph, 5)
        return [statistics.median(found) / LAYERS for found in times]

    def _product(self, place: int, chosen: Chosen, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        product = self.products[place]
        tensors = self._tensors[place] | {"x": x}
        return self.mode.call(chosen[product.name], product, tensors, weights[product.name])

    def _attention(self, qkv: Tensor, k: Tensor, v: Tensor) -> Tensor:
        norm, turns = self._head
        at, last, tables, contexts = self._places
        return rope_decode_attention(
            qkv, norm, norm, 1e-6, turns, at, last, k, v, tables, contexts, self._dim**-0.5, 4096,
            counters=self._tensors[0]["counters"], exact=self.mode.exact, pdl=True,
        )  # fmt: skip

    def _new(self, *shape: int) -> Tensor:
        empty = torch.empty(*shape, dtype=torch.bfloat16, device=self._device)
        return empty if self._device == "meta" else empty.normal_()


def start(layers: Layers) -> Chosen:
    """What the table has."""
    if layers.mode.exact:
        return {p.name: exact.choose(p.n, p.k, layers.rows) for p in layers.products}
    return {p.name: fast(p, layers.rows, tuning.HOME) for p in layers.products}


def compilations(shape: str, rows: int, mode: Mode) -> list[Callable[[], object]]:
    """Calls on meta tensors, one for each candidate."""
    layers = Layers(shape, rows, mode, "meta")
    known = start(layers)
    return [
        lambda c=known | {p.name: variant}: layers.step(c, 1)
        for p in layers.products
        for variant in tried(p, rows, mode)
    ]


def search(layers: Layers, rounds: int) -> Chosen:
    """What is best, a product at a time: as one's best depends on the others', over and over."""
    chosen, shown = start(layers), []
    for _ in range(rounds):
        for product in reversed(layers.products):
            variants = tried(product, layers.rows, layers.mode)
            others = [chosen | {product.name: variant} for variant in variants]
            before, *times = layers.us([chosen, *others])
            best = min(times)
            if best < before * MARGIN:
                chosen = others[times.index(best)]
            shown.append(f"{before:.2f} to {min(best, before):.2f}")
    print(f"{layers.rows} rows, us a layer: {', '.join(shown)}", flush=True)
    return chosen


def compare(product: Product, variant: Variant, rows: int) -> None:
    """Raises AssertionError where a launch has other bits than one tile."""
    weight = torch.empty(product.n, product.k, dtype=torch.bfloat16, device="cuda")
    around = Fusion(rows, product.norm, product.residual, product.silu, product.out_dtype)
    bits = Bits(weight, around, exact.order_of(product.n, product.k).split)
    assert bits.differ_at(variant, (rows,)) is None, (product.name, rows, variant)


def tune(
    shape: str, rows: int, entries: dict[tuple[int, int], dict[str, Any]], options: Namespace
) -> None:
    """Put what is best for a model and a bucket of rows into its entries of a table."""
    mode = MODES[options.mode]
    layers = Layers(shape, rows, mode, "cuda")
    chosen = search(layers, options.rounds)
    bench = Bench(max(p.n * p.k for p in layers.products))
    for product in layers.products:
        entry, variant = entries[product.n, product.k], chosen[product.name]
        if mode.exact:
            entry = entry["exact"]
        if mode.exact and options.check:
            compare(product, variant, rows)
        us = bench.time(mode, variant, product, rows)
        print(f"  {product.name}: {variant} {us or 0:.2f} us alone", flush=True)
        entry["rows"][str(rows)] = tuning.to_json(variant)
        entry["us"][str(rows)] = round(us or entry["us"][str(rows)], 2)


def main() -> None:
    parser = ArgumentParser(description="Tune products between others.")
    parser.add_argument("--shape", nargs="+", default=["0.6B", "8B"], choices=SHAPES)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--mode", choices=MODES, default="exact")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--check", action=BooleanOptionalAction, default=True, help="bits")
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--out", type=Path, help="default: the card's own table")
    options = parser.parse_args()
    mode = MODES[options.mode]
    compiled = [c for s in options.shape for r in options.rows for c in compilations(s, r, mode)]
    faults = precompile(compiled, options.processes)
    print(f"{len(compiled)} kernels, {len(faults)} failed", *faults[:3], flush=True)
    card = support.card_name(torch.device("cuda"))
    path = tuning.TABLES / f"{card.split()[1].lower()}.json"
    table = json.loads(path.read_text())
    entries = {(entry["n"], entry["k"]): entry for entry in table["shapes"]}
    for shape in options.shape:
        for rows in options.rows:
            print(shape, end=" ")
            tune(shape, rows, entries, options)
            where = "exact_on" if mode.exact else "measured_on"
            table[where] = {"machine": machine(), "versions": versions()}
            (options.out or path).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
