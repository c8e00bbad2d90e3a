"""Chooses products of many rows by whole captured steps of an engine, for the card's table.

    python tools/tune_steps.py --shape 0.6B --rows 64 128 256   # on the GPU; half a minute each

What is fastest in a chain of itself (tools/tune_linear.py) may not be so between others
(tools/tune_layers.py, of few rows). Here one product after another takes each of its candidates in
an engine's own steps: a prompt of so many tokens, and as many rows of one token. It keeps what
makes their times, added up, shortest; the fast mode may take any order of sums.
"""

import json
import statistics
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import torch
from common import machine, precompile, replay_us, versions
from engines import QuireEngine
from linear_candidates import Product, candidates, products
from tune_exact import FAST, Bench
from tune_linear import SHAPES, tensors_of

from quire.engine.runner.graphs import GraphKey
from quire.kernels import support
from quire.kernels.linear import tuning
from quire.kernels.linear.tuning import Library, Skinny, Variant

MARGIN = 0.998  # of the time so far, that another has to beat
LIKELY = 5  # candidates that are tried again in later rounds
_PROGRAMS = (64, 264)  # of a launch: fewer leave multiprocessors idle, more come in two turns
_LOWER = (  # tiles of 32 rows, and deeper ones, that tools/tune_linear.py does not try at many rows
    Skinny(32, 64, 128, swap=True, stages=4, warps=4),
    Skinny(32, 64, 128, swap=True, stages=6, warps=4),
    Skinny(32, 128, 64, swap=True, stages=5, warps=4),
    Skinny(32, 64, 256, swap=True, stages=3, warps=4),
    Skinny(64, 64, 64, swap=True, stages=6, warps=4),
    Skinny(64, 64, 128, swap=True, stages=6, warps=4),
)

Chosen = dict[tuple[int, int], Variant]  # by a weight's shape


def tried(product: Product, rows: int) -> list[Variant]:
    """A product's candidates at so many rows."""
    least, most = _PROGRAMS
    found: list[Variant] = []
    for variant in candidates(product, rows, True, _LOWER):
        if isinstance(variant, Skinny):
            tiles = -(-product.n // (variant.block_n * variant.tiles)) * -(-rows // variant.block_m)
            if variant.fuse_norm or not least <= tiles * variant.split <= most:
                continue
        found.append(variant)
    return found


def compilations(shape: str, rows: int) -> list[Callable[[], object]]:
    """Calls on meta tensors, one for each candidate."""
    calls: list[Callable[[], object]] = []
    for product in products(shape)[:-1]:
        tensors = tensors_of(product, rows, "meta")
        weight = torch.empty(product.n, product.k, dtype=torch.bfloat16, device="meta")
        for variant in tried(product, rows):
            if not isinstance(variant, Library):
                calls.append(
                    lambda v=variant, p=product, t=tensors, w=weight: FAST.call(v, p, t, w)
                )
    return calls


@contextmanager
def instead(chosen: Chosen, rows: int) -> Iterator[None]:
    """The table with other launches in one bucket of rows."""
    choose, below = tuning.choose, [bucket for bucket in tuning.ROW_BUCKETS if bucket < rows]

    def other(n: int, k: int, count: int, *more: Any, **named: Any) -> Variant:
        if (n, k) in chosen and max(below, default=0) < count <= rows:
            return chosen[n, k]
        return choose(n, k, count, *more, **named)

    with mock.patch.object(tuning, "choose", other):
        yield


class Steps:
    """The steps of one engine of random weights that have so many rows."""

    def __init__(self, engine: QuireEngine, rows: int) -> None:
        self._runner: Any = engine.engine.core.runner
        self._rows, sizes = rows, self._runner._sizes
        prompt = sizes.mixed(0, 1, rows, rows)
        assert prompt is not None
        self._keys: list[GraphKey] = [sizes.best(prompt, None, rows), sizes.decode(rows, 1, None)]

    def us(self, chosen: Chosen) -> float:
        """Microseconds of them, added up."""
        with instead(chosen, self._rows):
            return sum(self._time(key) for key in self._keys)

    def _time(self, key: GraphKey) -> float:
        graphs = self._runner._graphs
        graphs._graphs.pop(key, None)
        with torch.inference_mode():
            self._runner._capture_null(key)
        (graph,) = graphs._graphs[key].graphs
        return statistics.median(replay_us(graph, 15))


def search(shape: str, steps: Steps, rows: int, rounds: int) -> Chosen:
    """What is best, a product at a time: as one's best depends on the others', over and over."""
    chosen: Chosen = {}
    likely: dict[str, Sequence[Variant]] = {}
    for _ in range(rounds):
        for product in products(shape)[:-1]:
            place = product.n, product.k
            found = []
            for variant in likely.get(product.name) or tried(product, rows):
                try:
                    found.append((steps.us(chosen | {place: variant}), variant))
                except Exception as error:
                    print(f"failed: {product.name} {variant}: {error!r:.90}", flush=True)
            found.sort(key=lambda one: one[0])
            likely[product.name] = [variant for _, variant in found[:LIKELY]]
            before, (best, variant) = steps.us(chosen), found[0]
            if best < before * MARGIN:
                chosen[place] = variant
            shown = f"{before:.1f} to {min(best, before):.1f}"
            print(f"{rows} rows, {product.name}: {shown} us, {chosen.get(place)}", flush=True)
    return chosen


def main() -> None:
    parser = ArgumentParser(description="Tune products of many rows in whole steps.")
    parser.add_argument("--shape", nargs="+", default=["0.6B"], choices=SHAPES)
    parser.add_argument("--rows", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--out", type=Path, help="default: the card's own table")
    options = parser.parse_args()
    unknown = [rows for rows in options.rows if rows not in tuning.ROW_BUCKETS or rows < 16]
    if unknown:
        parser.error(f"--rows: {unknown} are not among {tuning.ROW_BUCKETS[4:]}")
    calls = [call for s in options.shape for r in options.rows for call in compilations(s, r)]
    faults = precompile(calls, options.processes)
    print(f"{len(calls)} kernels, {len(faults)} failed", *faults[:3], flush=True)
    card = support.card_name(torch.device("cuda"))
    path = tuning.TABLES / f"{card.split()[1].lower()}.json"
    table = json.loads(path.read_text())
    entries = {(entry["n"], entry["k"]): entry for entry in table["shapes"]}
    for shape in options.shape:
        engine = QuireEngine(f"random:{shape}", num_blocks=2048)
        for rows in options.rows:
            for place, variant in search(shape, Steps(engine, rows), rows, options.rounds).items():
                (product,) = [p for p in products(shape) if (p.n, p.k) == place]
                us = Bench(product.n * product.k).time(FAST, variant, product, rows)
                entry = entries[place]
                entry["rows"][str(rows)] = tuning.to_json(variant)
                entry["us"][str(rows)] = round(us or entry["us"][str(rows)], 2)
            table["measured_on"] = {"machine": machine(), "versions": versions()}
            (options.out or path).write_text(json.dumps(table, indent=1) + "\n")
        del engine


if __name__ == "__main__":
    main()
