"""Large models over several GPUs of one machine: what one more rank gains, and what it costs.

Cells are (shape, ranks); one that does not fit is named and left out. Workloads:
    decode-bN    mean step while N rows of 192 ids grow by 128 greedy tokens (contexts of 256)
    prefill      prompts of 1024 ids, one token each, tokens a second
    nano-256     see offline.py; at most as many requests at once as fit the smallest number of
                 ranks to their end, so that none is preempted and all cells do the same work
    nano-256-all the same with all 256 at once: what the larger cache of more ranks gains besides
    exchange-bN  the exchange with its norm, in the captured step of decode-bN, from the end of what
                 stands ahead of it

    python benchmarks/large.py --shapes 32B --ranks 1 2 --out benchmarks/results/large.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from cards import this_card
from common import Row, print_table, result_row, write_results
from engines import Ask, QuireEngine, timed
from floors import Floors, nano_256
from offline import options_of, prompts
from profile_step import kernels_of

from quire.engine.errors import QuireError
from quire.engine.model.config import ModelConfig

SHAPES = ("8B", "14B", "32B", "72B")
BATCHES = (1, 64, 256)
NAMES = [*(f"decode-b{n}" for n in BATCHES), "prefill", "nano-256", "nano-256-all"]
PROMPT, NEW = 192, 128  # tokens: the mean context is 256
NANO_TOKENS = 2048  # of the longest request of nano-256
PREFILLS, PREFILL_LENGTH = 16, 1024
EXCHANGE = "_shot_kernel"  # in the name of what exchanges
OPTIONS: dict[str, Any] = {
    "max_model_len": NANO_TOKENS + 64,
    "max_num_batched_tokens": 4096,
    "gpu_memory_utilization": 0.95,
}


class Cell:
    """One shape on so many ranks."""

    def __init__(self, shape: str, ranks: int, options: Namespace) -> None:
        """Raises QuireError where it does not fit."""
        self.shape, self.ranks, self._runs = shape, ranks, options.runs
        self._floors = Floors.of(ModelConfig.named_shape(shape), this_card())
        begin = time.perf_counter()
        given = OPTIONS | {"tensor_parallel_size": ranks} | options_of(options.option)
        self.engine = QuireEngine(f"random:{shape}", **given)
        self._built = time.perf_counter() - begin
        self._seed = 0
        self._decoded: list[int] = []  # batches

    def rows(self, workloads: Sequence[str], concurrency: int) -> Iterator[Row]:
        """What was measured, one by one. concurrency: of nano-256; 0: as many as fit here."""
        fits = self.engine.rows_that_fit(NANO_TOKENS) or 1
        concurrency = concurrency or min(256, fits)
        yield self._row("start", [self._built], "s", None, concurrency=concurrency)
        for name in workloads:
            if name.startswith("decode"):
                yield from self._decode(int(name.removeprefix("decode-b")))
            elif name == "prefill":
                floor = self._floors.prefill_rate(PREFILL_LENGTH) * self.ranks
                yield self._row(name, self._repeat(self._prefill), "tokens/s", floor)
            else:
                most = concurrency if name == "nano-256" else 256
                figures = [self._nano(most) for _ in range(max(1, self._runs - 1))]
                yield self._row(name, figures, "tokens/s", None, concurrency=most)
        yield self._memory()
        if self.ranks > 1 and self.engine.engine.device.type == "cuda":
            for batch in self._decoded:
                yield from self._exchange(batch)

    def _row(
        self, workload: str, figures: list[float], unit: str, floor: float | None, **more: Any
    ) -> Row:
        return result_row(workload, self.shape, "quire", figures, unit, floor) | {
            "ranks": self.ranks,
            **more,
        }

    def _memory(self) -> Row:
        stats = self.engine.engine.stats()
        peaks = [peak / 2**30 for _, peak in stats.rank_memory] or [stats.memory_peak / 2**30]
        return self._row("memory a rank", peaks, "GiB", None)

    def _repeat(self, once: Callable[[], float]) -> list[float]:
        once()
        return [once() for _ in range(self._runs)]

    def _fresh(self, count: int, length: int) -> list[list[int]]:
        self._seed += 1
        return prompts(count, length, self._seed)

    def _decode(self, batch: int) -> Iterator[Row]:
        name = f"decode-b{batch}"
        if (self.engine.rows_that_fit(PROMPT + NEW + 2) or 0) < batch:
            print(f"{self.shape} on {self.ranks}: {name} does not fit the cache", flush=True)
            return

        def once() -> float:
            first = timed(self.engine, [Ask(p, 1) for p in self._fresh(batch, PROMPT)])
            whole = timed(self.engine, [Ask(p, 1 + NEW) for p in self._fresh(batch, PROMPT)])
            return (whole - first) / NEW * 1e3

        floor = self._floors.decode_loop(batch, PROMPT, NEW) / self.ranks * 1e3
        yield self._row(name, self._repeat(once), "ms", floor)
        self._decoded.append(batch)

    def _exchange(self, batch: int) -> Iterator[Row]:
        """In the captured step; on this rank, so with what it waits for the others."""
        events, _ = kernels_of(self.engine, batch, PROMPT)
        spans = alone(events, EXCHANGE)
        if spans:
            yield self._row(f"exchange-b{batch}", spans, "us", None) | {"runs": len(spans)}

    def _prefill(self) -> float:
        asks = [Ask(p, 1) for p in self._fresh(PREFILLS, PREFILL_LENGTH)]
        return PREFILLS * PREFILL_LENGTH / timed(self.engine, asks)

    def _nano(self, most: int) -> float:
        """Tokens a second, with at most so many requests in the engine at once."""
        texts, lengths = nano_256()
        self.engine.forget()
        asks = [Ask(p, n, 0.6) for p, n in zip(texts, lengths, strict=True)]
        begin = time.perf_counter()
        self.engine.generate_bounded(asks, most)
        return sum(lengths) / (time.perf_counter() - begin)


def alone(events: Sequence[Any], name: str) -> list[float]:
    """Microseconds of the kernels of that name, each from the end of those before it: launched as
    a dependent, it begins beside them. events: in the order of their starts."""
    spans, last = [], 0.0
    for span, here in ((event.time_range, name in event.name) for event in events):
        if here:
            spans.append(max(0.0, span.end - max(span.start, last)))
        last = max(last, span.end)
    return spans


def scaled(rows: Sequence[Row]) -> list[Row]:
    """Each with how many times as fast it is as on the fewest ranks that were measured."""
    bases: dict[tuple[str, str], Row] = {}
    found = []
    for row in sorted(rows, key=lambda row: row["ranks"]):
        base = bases.setdefault((row["model"], row["workload"]), row)
        faster = row["value"] / base["value"]
        if not row["unit"].endswith("/s"):
            faster = 1 / faster
        timed_one = row["unit"] in ("ms", "tokens/s")
        more = {"scaling": faster, "scaling_from": base["ranks"]} if timed_one else {}
        found.append(row | more)
    return found


def show(rows: Sequence[Row]) -> None:
    """One line a figure."""
    lines = [
        [row["model"], row["workload"], row["ranks"], row["value"], row["unit"],
         row["share_of_floor"], row.get("scaling")]
        for row in rows
    ]  # fmt: skip
    print_table("", ["shape", "workload", "ranks", "value", "unit", "of floor", "times"], lines)


def run_here(shape: str, ranks: int, options: Namespace) -> None:
    """One cell, in this process, written as it comes."""
    try:
        cell = Cell(shape, ranks, options)
    except QuireError as error:
        print(f"{shape} on {ranks}: left out: {error}", flush=True)
        return
    rows: list[Row] = []
    try:
        for row in cell.rows(options.workloads, options.concurrency):
            rows.append(row)
            write_results(options.out, rows)
    finally:
        cell.engine.end()


def run_all(options: Namespace) -> None:
    """Every cell in a process of its own, which leaves the cards as it found them."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for shape in options.shapes:
            concurrency = options.concurrency
            for ranks in sorted(options.ranks):
                out = Path(scratch) / f"{shape}-{ranks}.json"
                command = [sys.executable, __file__, "--here", "--out", str(out)]
                command += ["--shapes", shape, "--ranks", str(ranks), "--runs", str(options.runs)]
                command += ["--concurrency", str(concurrency)]
                command += ["--workloads", *options.workloads, "--option", *options.option]
                failed = subprocess.run(command, check=False).returncode
                if not out.exists():
                    print(f"{shape} on {ranks}: nothing measured, exit code {failed}", flush=True)
                    continue
                found = json.loads(out.read_text())["rows"]
                concurrency = concurrency or found[0]["concurrency"]
                rows += found
                if options.out:
                    write_results(options.out, scaled(rows))
    if not rows:
        raise SystemExit("large: nothing was measured")
    show(scaled(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=0, help="of nano-256; 0: what fits")
    parser.add_argument("--option", nargs="*", default=[], help="engine options, name=value")
    parser.add_argument("--out", type=Path, default=None, help="write results as JSON")
    parser.add_argument("--here", action="store_true", help="one cell, in this process")
    options = parser.parse_args()
    if options.here:
        run_here(options.shapes[0], options.ranks[0], options)
    else:
        run_all(options)


if __name__ == "__main__":
    main()
