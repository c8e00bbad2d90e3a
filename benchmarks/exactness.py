"""Two ways to serve the same requests, side by side: what is bit for bit the same, and what is not.

    python benchmarks/exactness.py [--out benchmarks/results/exactness.json]

For each pair: whether all logits are bit-equal up to the first token that differs, the largest
difference of a logit, how many tokens were compared, and how many differ (each must have hung by
less than two such differences, noise and temperature included). Where logits differ, the kernels
whose results depend on what the pair changes are named; kernel_probes.py finds them.

Invariant: a difference of tokens without a difference of logits is a fault, never excused.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import print_table, write_results
from kernel_probes import broken_kernels
from torch import Tensor
from watched import Served, WatchedEngine, Way, requests

from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.scheduling.plan import SamplingNumbers
from quire.kernels import reference

# Most that a logit may differ by, as a share of the spread (standard deviation) of a row of logits.
BOUNDS = {"bfloat16": 0.1, "float32": 0.02}
SAMPLINGS = {
    "greedy": SamplingParams(),
    "seeded": SamplingParams(temperature=0.8),
    "filtered": SamplingParams(temperature=0.9, top_k=50, top_p=0.95, min_p=0.01),
}

_GRAPHS = ("enforce_eager", False)
_OVERLAP = ("overlap", True)
_CACHING = ("enable_prefix_caching", True)
_SIXTEEN = ("max_num_seqs", 16)

ALONE = Way("alone, eager, plain", alone=True)
EAGER = Way("eager, plain")
GRAPH = Way("graph, plain", (_GRAPHS,), passes=3)
AHEAD = Way("graph, overlapped", (_GRAPHS, _OVERLAP), passes=3)
EAGER_AHEAD = Way("eager, overlapped", (_OVERLAP,))
PADDED = Way("graph, plain, padded", (_GRAPHS, _SIXTEEN), passes=3)
EAGER_16 = Way("eager, plain, 16", (_SIXTEEN,))
STAGGERED = Way("eager, staggered", (_SIXTEEN,), apart=2)
MIXED = Way("graph, staggered", (_GRAPHS, _SIXTEEN), apart=2, passes=4)
CACHED = Way("cached", (_GRAPHS, _OVERLAP, _CACHING), passes=3)
CHUNKED = Way("chunks of 24", (_OVERLAP, ("max_num_batched_tokens", 24)))
SQUEEZED = Way("preempted", (_OVERLAP, ("num_blocks", 22)))
LONE_GRAPH = Way("alone, graph", (_GRAPHS,), alone=True, passes=3)
PLAIN_LAUNCH = Way("graph, plain launch", (_GRAPHS, _OVERLAP), passes=3, pdl=False)


@dataclass(frozen=True)
class Pair:
    """Two ways that must agree. same_steps: every step holds the same rows and tokens in both, so
    logits can only differ where a kernel looks at more than its own row. changes: what else does.
    """

    name: str
    one: Way
    other: Way
    count: int = 8
    same_steps: bool = False
    changes: tuple[str, ...] = ()


PAIRS = (
    Pair("graph = eager", EAGER, GRAPH, changes=("rows",)),  # prompts are padded in a graph
    Pair("graph = eager, padded rows", EAGER_16, PADDED, 11, changes=("rows",)),
    Pair("graph = eager, one row", ALONE, LONE_GRAPH, changes=("rows",)),
    Pair("mixed graph = eager", STAGGERED, MIXED, 11, changes=("rows", "chunks")),
    Pair("overlapped = plain, graph", GRAPH, AHEAD, same_steps=True),
    Pair("overlapped = plain, eager", EAGER, EAGER_AHEAD, same_steps=True),
    Pair("dependent launch = plain launch", PLAIN_LAUNCH, AHEAD, same_steps=True),
    Pair("batched = alone", ALONE, AHEAD, changes=("rows", "chunks")),
    Pair("cached = uncached", AHEAD, CACHED, changes=("rows", "chunks")),
    Pair("chunked = whole", EAGER_AHEAD, CHUNKED, changes=("rows", "chunks")),
    Pair("preempted = not", EAGER_AHEAD, SQUEEZED, changes=("rows", "chunks")),
)


@dataclass
class Comparison:
    """What came of a pair. Differences in units of the logits' spread, over compared tokens."""

    pair: str
    dtype: str
    sampling: str
    bit_for_bit: bool = True
    max_difference: float = 0.0
    max_logit_difference: float = 0.0
    compared: int = 0
    excused: int = 0
    smallest_margin: float = float("inf")
    faults: list[str] = field(default_factory=list)
    broken_by: list[str] = field(default_factory=list)


def margin(logits: Tensor, key: int, position: int, temperature: float) -> float:
    """By how much the best id stood above the next, in units of logits. logits: [V]."""
    scores = logits
    if temperature > 0:
        where = torch.tensor([position])
        noise = reference.exponential_noise(torch.tensor([key]), where, len(logits))[0]
        scores = logits - temperature * noise.log()
    best = scores.topk(2).values
    return float(best[0] - best[1])


def compare(
    pair: Pair, dtype: str, kind: str, one: Served, other: Served, specs: Sequence[Any]
) -> Comparison:
    """Token by token, up to each request's first difference."""
    result, bound = Comparison(pair.name, dtype, kind), BOUNDS[dtype]
    for spec in specs:
        _compare_one(result, bound, one, other, spec)
    if not result.bit_for_bit and result.max_difference > bound:
        result.faults.append(f"logits differ by {result.max_difference:.3f} of their spread")
    if pair.same_steps and not result.bit_for_bit:
        result.faults.append("the same steps gave other logits")
    return result


def _compare_one(
    result: Comparison, bound: float, one: Served, other: Served, spec: GenerationRequest
) -> None:
    mine, theirs = one.tokens[spec.key], other.tokens[spec.key]
    if len(mine) != spec.sampling.max_tokens or len(theirs) != spec.sampling.max_tokens:
        result.faults.append(f"request {spec.key}: {len(mine)} and {len(theirs)} tokens")
    for place, (token, wanted) in enumerate(zip(theirs, mine, strict=False)):
        a, b = one.logits[spec.key][place], other.logits[spec.key][place]
        difference, spread = float((a - b).abs().max()), float(a.std())
        if not (torch.isfinite(a).all() and torch.isfinite(b).all() and spread > 0):
            result.faults.append(f"request {spec.key}, token {place}: logits not finite or flat")
            return
        result.bit_for_bit &= torch.equal(a, b)
        result.max_difference = max(result.max_difference, difference / spread)
        result.max_logit_difference = max(result.max_logit_difference, difference)
        hung = margin(a, spec.key, len(spec.prompt_token_ids) + place, spec.sampling.temperature)
        filtered = SamplingNumbers.of(spec.sampling).has_filters
        if not filtered:
            result.smallest_margin = min(result.smallest_margin, hung / spread)
        if token == wanted:
            result.compared += 1
            continue
        if difference == 0:
            result.faults.append(f"request {spec.key}, token {place}: equal logits, other token")
        elif not filtered and hung > 2 * bound * spread:
            result.faults.append(f"request {spec.key}, token {place}: margin {hung:.3f}")
        result.excused += 1
        return


class Bench:
    """Engines and what they gave, kept for as many pairs as need them."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self._engines: dict[Way, WatchedEngine] = {}
        self._served: dict[tuple[Way, str, int], Served] = {}

    def served(self, way: Way, kind: str, count: int) -> Served:
        """What a way gives for the first `count` requests."""
        place = way, kind, count
        if place not in self._served:
            if way not in self._engines:
                self._engines[way] = WatchedEngine(way, self.dtype)
            specs = requests(count, SAMPLINGS[kind])
            self._served[place] = self._engines[way].serve(specs)
        return self._served[place]

    def compare(self, pair: Pair, kind: str) -> Comparison:
        """A pair, under one kind of sampling, with the kernels that break it."""
        one, other = (self.served(way, kind, pair.count) for way in (pair.one, pair.other))
        specs = requests(pair.count, SAMPLINGS[kind])
        result = compare(pair, self.dtype, kind, one, other, specs)
        if not result.bit_for_bit:
            broken = probes(self.dtype)
            result.broken_by = [name for kind in pair.changes for name in broken[kind]]
        return result


@cache
def probes(dtype: str) -> dict[str, list[str]]:
    """Kernels whose results depend on the rows beside theirs, or on how a prompt is cut."""
    return broken_kernels(getattr(torch, dtype))


def rows_of(results: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The results as rows of JSON."""
    rows = []
    for result in results:
        values = asdict(result)
        values["smallest_margin"] = (
            None if result.smallest_margin == float("inf") else result.smallest_margin
        )
        rows.append({"workload": "exactness", "engine": "quire", **values})
    return rows


def main() -> int:
    """Compare every pair; exit 1 where a rule is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtypes", nargs="+", choices=sorted(BOUNDS), default=sorted(BOUNDS))
    parser.add_argument("--pairs", default="", help="only pairs whose name contains this")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    options = parser.parse_args()
    results = []
    for dtype in options.dtypes:
        bench = Bench(dtype)
        for pair in (p for p in PAIRS if options.pairs in p.name):
            results += [bench.compare(pair, kind) for kind in SAMPLINGS]
    columns = ["pair", "dtype", "sampling", "bit for bit", "max |d logit|", "tokens", "differ"]
    table = [
        [
            r.pair,
            r.dtype,
            r.sampling,
            "yes" if r.bit_for_bit else "no",
            r.max_logit_difference,
            r.compared,
            r.excused,
        ]
        for r in results
    ]
    print_table("served one way = served another", columns, table)
    for result in results:
        for fault in result.faults:
            print(f"FAULT {result.pair}, {result.dtype}, {result.sampling}: {fault}")
    if options.out:
        write_results(options.out, rows_of(results))
    return int(any(result.faults for result in results))


if __name__ == "__main__":
    sys.exit(main())
