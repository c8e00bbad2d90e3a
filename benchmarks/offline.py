"""The engine without its service: throughput, decode steps, prefill, first tokens, start.

Workloads (names as in the results):
    nano-256     256 prompts of 100 to 1024 ids, 100 to 1024 tokens each, temperature 0.6
    decode-bN    (time for 1 + K new tokens - time for 1) / K; K = 256, at batch 1 512; greedy;
                 where N rows do not fit into the cache, the largest batch that does, under its
                 name; a difference below the floor, where something held up the first part, is
                 taken again
    prefill      256 prompts of 1024 ids, one token each
    ttft-cold    one prompt of 3000 ids; ttft-hit: again, all but its last token cached;
                 ttft-cold-rested: each prompt after eight hits, so on a card that no other prompt
                 has just brought to its cap of power; ttft-hits: the middle of forty hits, one
                 right after another, so on a host whose caches hold what a hit needs, and a card
                 that has left a prompt behind: the first eight after one still take longer
    start        from exec to `serving`, real safetensors of random weights, warm page cache
    start-first  the same with no kernel compiled; both tell what the time went to. Their floor is
                 a process that imports PyTorch and multiplies once on the card

    python benchmarks/offline.py --model-shape 0.6B --out benchmarks/results/offline-0.6B.json
    python benchmarks/offline.py --model-shape all --workloads decode-b1 decode-b64 prefill
    python benchmarks/offline.py --model DIR --engine vllm
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from cards import Card, this_card
from common import Row, print_table, result_row, write_results
from engines import ENGINES, Ask, OfflineEngine, timed
from floors import DECODES as DECODE_LOOPS
from floors import ELEMENT, OTHER_SHAPES, SHAPES, Floors, largest_batch, nano_256, workloads
from serving_vocabulary import save_tokenizer
from starts import GOALS, bare, middle, starts

from quire.engine.model.config import ModelConfig

VOCAB = 10_000
DECODES = {f"decode-b{rows}": (rows, prompt, new) for rows, prompt, new in DECODE_LOOPS}
STARTS = ("start", "start-first")
FIRST_TOKENS = ("ttft-cold", "ttft-hit", "ttft-cold-rested", "ttft-hits")
COLD, HIT, RESTED, SEVERAL = FIRST_TOKENS
NAMES = ["nano-256", *DECODES, "prefill", *FIRST_TOKENS, *STARTS]
HITS = {COLD: 1, HIT: 1, RESTED: 8, SEVERAL: 40}  # behind each cold prompt


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """Random ids, other ones for every seed."""
    draw = random.Random(seed)
    return [[draw.randrange(VOCAB) for _ in range(length)] for _ in range(count)]


class BelowFloorError(Exception):
    """A workload whose measurement is at fault again and again."""


class Workloads:
    """Each method gives one figure a run, after two warm-ups."""

    def __init__(self, engine: OfflineEngine, runs: int) -> None:
        self._engine = engine
        self._runs = runs
        self._seed = 0

    def _fresh(self, count: int, length: int) -> list[list[int]]:
        self._seed += 1
        return prompts(count, length, self._seed)

    def _repeat(self, once: Callable[[], float], floor: float = 0.0) -> list[float]:
        for _ in range(2):
            once()
        figures: list[float] = []
        for _ in range(2 * self._runs):
            figure = once()
            if figure >= floor:
                figures.append(figure)
            if len(figures) == self._runs:
                return figures
        raise BelowFloorError(f"most figures lie below their floor of {floor:.4g}")

    def nano(self) -> list[float]:
        texts, lengths = nano_256()
        asks = [Ask(p, n, 0.6) for p, n in zip(texts, lengths, strict=True)]

        def once() -> float:
            self._engine.forget()
            return sum(lengths) / timed(self._engine, asks)

        once()
        return [once() for _ in range(self._runs)]

    def decode(self, batch: int, context: int, new: int, floor: float) -> list[float]:
        """floor: ms a step, below which no figure can be."""

        def once() -> float:
            texts = self._fresh(batch, context)
            first = timed(self._engine, [Ask(p, 1) for p in texts])
            texts = self._fresh(batch, context)
            whole = timed(self._engine, [Ask(p, 1 + new) for p in texts])
            return (whole - first) / new * 1e3

        return self._repeat(once, floor)

    def prefill(self) -> list[float]:
        def once() -> float:
            asks = [Ask(p, 1) for p in self._fresh(256, 1024)]
            return 256 * 1024 / timed(self._engine, asks)

        return self._repeat(once)

    def first_token(self, name: str) -> list[float]:
        def once() -> float:
            asks = [Ask(p, 1) for p in self._fresh(1, 3000)]
            cold = timed(self._engine, asks)
            hits = [timed(self._engine, asks) for _ in range(HITS[name])]
            return (statistics.median(hits) if name in (HIT, SEVERAL) else cold) * 1e3

        return self._repeat(once)

    def run(self, name: str) -> tuple[list[float], str]:
        """The figures of a workload and their unit."""
        if name == "nano-256":
            return self.nano(), "tokens/s"
        if name == "prefill":
            return self.prefill(), "tokens/s"
        return self.first_token(name), "ms"


def random_directory(shape: str, parent: Path) -> Path:
    """A checkpoint of random weights with the embedded model's tokenizer beside it."""
    import torch

    from quire.engine.weights.random import save_random
    from quire.service.models import pocket

    directory = parent / shape
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    save_random(shape, directory, seed=0, device=device)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pocket.directory() / name, directory / name)
    return directory


def options_of(pairs: Sequence[str]) -> dict[str, Any]:
    """`name=value` pairs for the engine; numbers and booleans as such."""
    import ast

    found: dict[str, Any] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


class Report:
    """Rows so far: shown as they come, and written after each, so a run cut short leaves them."""

    def __init__(self, engine: str, card: Card, out: Path | None) -> None:
        self._engine, self.card, self._out = engine, card, out
        self._rows: list[Row] = []
        self._missed: list[str] = []

    def note(
        self,
        model: str,
        workload: str,
        figures: list[float],
        unit: str,
        floor: float | None,
        **more: Any,
    ) -> None:
        """Take a row in. more: further fields."""
        row = result_row(workload, model, self._engine, figures, unit, floor, **more)
        print(f"{model} {workload}: {row['value']:.4g} {unit}", flush=True)
        self.take([row])

    def take(self, rows: Sequence[Row]) -> None:
        """Take rows in as they are."""
        self._rows.extend(rows)
        if self._out:
            write_results(self._out, self._rows, card=self.card.fields())

    def miss(self, why: str) -> None:
        """A workload has no figure, or a model lacks some."""
        print(why, file=sys.stderr, flush=True)
        self._missed.append(why)

    def show(self) -> None:
        """One line a workload: value and share of the floor, model beside model. Ends the process
        with 1 where any is missing."""
        models = list(dict.fromkeys(row["model"] for row in self._rows))
        names = list(dict.fromkeys((row["workload"], row["unit"]) for row in self._rows))
        found = {(row["workload"], row["model"]): row for row in self._rows}
        lines = [
            [name, unit, *(_reached(found.get((name, model))) for model in models)]
            for name, unit in names
        ]
        print_table(f"{self._engine} on {self.card.name}", ["workload", "unit", *models], lines)
        if self._missed:
            raise SystemExit("offline: no figure of " + "; ".join(self._missed))


def _reached(row: Row | None) -> str:
    if row is None:
        return "-"
    share = row["share_of_floor"]
    return f"{row['value']:.4g}" + (f" ({share:.0%})" if share is not None else "")


def measure(
    name: str, shape: ModelConfig, directory: Path | None, report: Report, options: Namespace
) -> None:
    """All chosen workloads of one model, in an engine that is gone afterwards."""
    narrow = options_of(options.option).get("kv_cache_dtype") == "fp8"
    floors = Floors.of(shape, report.card, kv_element=1 if narrow else ELEMENT)
    known = workloads(floors)
    with tempfile.TemporaryDirectory() as scratch:
        model = str(directory) if directory else f"random:{name}"
        if options.engine != "quire" and not directory:
            model = str(random_directory(name, Path(scratch)))
        chosen = [w for w in options.workloads if w not in STARTS]
        if len(chosen) < len(options.workloads) and options.engine == "quire":
            if not directory:
                directory = random_directory(name, Path(scratch))
                save_tokenizer(directory, shape.vocab_size - 256)  # a server has to read so many
            measure_starts(name, directory, report, options)
        if chosen:
            begin = time.perf_counter()
            engine = ENGINES[options.engine](model, **options_of(options.option))
            print(f"{name}: engine built in {time.perf_counter() - begin:.1f} s", flush=True)
            measured = Workloads(engine, options.runs)
            for workload in chosen:
                if workload in DECODES:
                    rows, prompt, new = DECODES[workload]
                    rows = largest_batch(rows, engine.rows_that_fit(prompt + new + 1))
                    floor = floors.decode_loop(rows, prompt, new) * 1e3
                    try:
                        figures = measured.decode(rows, prompt, new, floor)
                    except BelowFloorError as error:
                        report.miss(f"{name} {workload}: {error}")
                        continue
                    report.note(name, f"decode-b{rows}", figures, "ms", floor)
                else:
                    figures, unit = measured.run(workload)
                    report.note(name, workload, figures, unit, known[workload][0])
            del engine, measured
            _free_device()


def measure_starts(name: str, directory: Path, report: Report, options: Namespace) -> None:
    """The first start before the warm one, in processes of their own."""
    for workload in ("start-first", "start"):
        if workload not in options.workloads:
            continue
        first = workload == "start-first"
        found = starts(directory, options.runs, first=first)
        goal = GOALS.get(name, (None, None))[0 if first else 1]
        stages, times = middle(found), [one.seconds for one in found]
        floor = statistics.median(bare() for _ in found)
        report.note(name, workload, times, "s", floor, goal=goal, stages=stages)
        print("    " + ", ".join(f"{stage} {value:.2f}" for stage, value in stages.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model-shape", nargs="+", default=["0.6B"], metavar="SHAPE",
        choices=[*SHAPES, *OTHER_SHAPES, "all"],
        help=f"{', '.join([*SHAPES, *OTHER_SHAPES])}, or all (the dense ones)",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, default=None, help="a real directory instead")
    parser.add_argument("--engine", choices=sorted(ENGINES), default="quire")
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--option", nargs="*", default=[], help="engine options, name=value")
    parser.add_argument("--out", type=Path, default=None, help="write results as JSON")
    options = parser.parse_args()

    names = SHAPES if "all" in options.model_shape else options.model_shape
    if not options.model and len(names) > 1:
        apart(names, options)
        return
    report = Report(options.engine, this_card(), options.out)
    if options.model:
        shape = ModelConfig.from_directory(options.model)
        measure(options.model.name, shape, options.model, report, options)
    else:
        measure(names[0], ModelConfig.named_shape(names[0]), None, report, options)
    report.show()


def apart(names: Sequence[str], options: Namespace) -> None:
    """Each model in a process of its own, which leaves the card as it found it; one table."""
    report: Report | None = None
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            out = Path(scratch) / f"{name}.json"
            command = [sys.executable, __file__, "--model-shape", name, "--out", str(out)]
            command += ["--engine", options.engine, "--runs", str(options.runs)]
            command += ["--workloads", *options.workloads, "--option", *options.option]
            failed = subprocess.run(command, check=False).returncode
            if not out.exists():
                print(f"{name}: nothing measured, exit code {failed}", flush=True)
                continue
            found = json.loads(out.read_text())
            report = report or Report(options.engine, Card(**found["card"]), options.out)
            report.take(found["rows"])
            if failed:
                report.miss(f"{name}: cut short, exit code {failed}")
    if report is None:
        raise SystemExit("offline: nothing was measured")
    report.show()


def _free_device() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
