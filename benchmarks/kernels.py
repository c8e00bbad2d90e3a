"""Each fused kernel and product against the torch operations that it replaces.

    python benchmarks/kernels.py --quick                 # under a minute on an H200
    python benchmarks/kernels.py --shape 0.6B 8B --out benchmarks/results/kernels.json

Every figure is microseconds a call in a captured chain. The chain walks over distinct weights (or
logits, or cache blocks) of 200 MB together, so what a model reads cold is cold here; activations of
a few kilobytes stay in L2, as they do in a model. The floor is the bytes that must move at the rate
of a large copy, or the arithmetic at the rate of a large product, whichever is more.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from common import (
    Row,
    chain_us,
    precompile,
    print_table,
    result_row,
    write_results,
)
from kernel_cases import BASELINE, Case, all_cases

from quire.kernels.ops import Ops


def compilations(cases: list[Case], pdl: bool) -> list[Callable[[], object]]:
    """The cases' Triton calls on meta tensors."""
    from quire.kernels.triton_ops import TritonOps

    ops = TritonOps.on(torch.device("meta"), pdl=pdl)
    return [lambda c=case: c.build(ops, "meta", 1)["quire"](0) for case in cases]


def measure(case: Case, ops: Ops, runs: int) -> tuple[Row, Row]:
    """Rows for ours and for what it replaces."""
    engines = case.build(ops, "cuda", case.copies)
    times = {
        engine: chain_us([partial(call, i) for i in range(case.copies)], runs)
        for engine, call in engines.items()
    }
    extra = statistics.median(times.pop(BASELINE, [0.0]))
    workload = f"kernel-{case.name}-b{case.rows}"
    rows = {
        engine: result_row(
            workload, case.model, engine, [t - extra for t in found], "us", case.floor_us
        )
        for engine, found in times.items()
    }
    torch.cuda.empty_cache()
    return rows["quire"], rows["torch"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Kernels against what they replace.")
    parser.add_argument("--shape", nargs="+", default=["0.6B", "8B"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--quick", action="store_true", help="0.6B, batches 1, 8, 64, 256, 3 runs")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--plain", action="store_true", help="without dependent launch")
    parser.add_argument("--compile-only", action="store_true", help="no device is needed")
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    shapes = ["0.6B"] if options.quick else options.shape
    cases = [c for c in all_cases(shapes, options.batches) if options.only in c.name]
    for fault in precompile(compilations(cases, not options.plain), options.processes):
        print("compile failed:", fault, flush=True)
    if options.compile_only:
        return
    from quire.kernels.ops import select

    ops = select(torch.device("cuda"), pdl=not options.plain)
    rows, table = [], []
    for case in cases:
        ours, theirs = measure(case, ops, 3 if options.quick else 7)
        rows += [ours, theirs]
        figures = [theirs["value"], ours["value"], theirs["value"] / ours["value"], case.floor_us]
        share = f"{ours['share_of_floor']:.0%}"
        table.append([case.name, case.model, case.rows, *figures, share])
    columns = ["kernel", "model", "rows", "torch us", "quire us", "times", "floor us", "of floor"]
    print_table("kernels against what they replace (cold weights, captured chain)", columns, table)
    if options.out:
        write_results(options.out, rows)


if __name__ == "__main__":
    main()
