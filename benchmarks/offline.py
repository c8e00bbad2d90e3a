"""The engine without its service: throughput, decode steps, prefill, first tokens, start.

Workloads (names as in the results):
    nano-256     256 prompts of 100 to 1024 ids, 100 to 1024 tokens each, temperature 0.6
    decode-bN    (time for 1 + K new tokens - time for 1) / K; K = 256, at batch 1 512; greedy
    prefill      256 prompts of 1024 ids, one token each
    ttft-cold    one prompt of 3000 ids; ttft-hit: again, all but its last block cached
    start        from exec to `serving`, real safetensors of random weights, warm page cache

    python benchmarks/offline.py --model-shape 0.6B --out benchmarks/results/offline-0.6B.json
    python benchmarks/offline.py --model DIR --engine vllm
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import print_table, result_row, write_results
from engines import ENGINES, Ask, OfflineEngine, timed
from floors import Floors, nano_256, workloads

from quire.engine.model.config import ModelConfig

VOCAB = 10_000
DECODES = {"decode-b1": (1, 128, 512), "decode-b8": (8, 1024, 256)}
DECODES |= {f"decode-b{n}": (n, 1024, 256) for n in (64, 256)}
NAMES = ["nano-256", *DECODES, "prefill", "ttft-cold", "ttft-hit", "start"]


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """Random ids, other ones for every seed."""
    draw = random.Random(seed)
    return [[draw.randrange(VOCAB) for _ in range(length)] for _ in range(count)]


class Workloads:
    """Each method gives one figure a run, after two warm-ups."""

    def __init__(self, engine: OfflineEngine, runs: int) -> None:
        self._engine = engine
        self._runs = runs
        self._seed = 0

    def _fresh(self, count: int, length: int) -> list[list[int]]:
        self._seed += 1
        return prompts(count, length, self._seed)

    def _repeat(self, once: Callable[[], float]) -> list[float]:
        for _ in range(2):
            once()
        return [once() for _ in range(self._runs)]

    def nano(self) -> list[float]:
        texts, lengths = nano_256()
        asks = [Ask(p, n, 0.6) for p, n in zip(texts, lengths, strict=True)]

        def once() -> float:
            self._engine.forget()
            return sum(lengths) / timed(self._engine, asks)

        once()
        return [once() for _ in range(self._runs)]

    def decode(self, batch: int, context: int, new: int) -> list[float]:
        def once() -> float:
            texts = self._fresh(batch, context)
            first = timed(self._engine, [Ask(p, 1) for p in texts])
            texts = self._fresh(batch, context)
            whole = timed(self._engine, [Ask(p, 1 + new) for p in texts])
            return (whole - first) / new * 1e3

        return self._repeat(once)

    def prefill(self) -> list[float]:
        def once() -> float:
            asks = [Ask(p, 1) for p in self._fresh(256, 1024)]
            return 256 * 1024 / timed(self._engine, asks)

        return self._repeat(once)

    def first_token(self, *, hit: bool) -> list[float]:
        def once() -> float:
            asks = [Ask(p, 1) for p in self._fresh(1, 3000)]
            cold = timed(self._engine, asks)
            return (timed(self._engine, asks) if hit else cold) * 1e3

        return self._repeat(once)

    def run(self, name: str) -> tuple[list[float], str]:
        """The figures of a workload and their unit."""
        if name == "nano-256":
            return self.nano(), "tokens/s"
        if name in DECODES:
            return self.decode(*DECODES[name]), "ms"
        if name == "prefill":
            return self.prefill(), "tokens/s"
        return self.first_token(hit=name == "ttft-hit"), "ms"


def start_seconds(directory: Path, runs: int) -> list[float]:
    """From exec to the line `serving …`, in a process of its own; the first run warms caches."""
    command = [sys.executable, "-m", "quire.clients.cli", "serve", "--model", str(directory)]
    command += ["--port", "0", "--max-model-len", "4096"]
    times = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            line = server.stdout.readline()
            times.append(time.perf_counter() - begin)
            server.terminate()
            server.stdout.read()
        if not line.startswith("serving"):
            raise SystemExit(f"the server did not start: {line!r}")
    print(f"start, first of all runs: {times[0]:.2f} s", flush=True)
    return times[1:]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-shape", default="0.6B", help="0.6B, 1.7B, 4B, 8B, 14B or 32B")
    parser.add_argument("--model", type=Path, default=None, help="a real directory instead")
    parser.add_argument("--engine", choices=sorted(ENGINES), default="quire")
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--option", nargs="*", default=[], help="engine options, name=value")
    parser.add_argument("--out", type=Path, default=None, help="write results as JSON")
    options = parser.parse_args()

    shape = (
        ModelConfig.from_directory(options.model)
        if options.model
        else ModelConfig.named_shape(options.model_shape)
    )
    name = str(options.model.name) if options.model else options.model_shape
    floors = workloads(Floors.of(shape))
    chosen = [w for w in options.workloads if w != "start"]
    rows, table = [], []

    def note(workload: str, figures: list[float], unit: str) -> None:
        floor = floors[workload][0] if workload in floors else None
        row = result_row(workload, name, options.engine, figures, unit, floor)
        rows.append(row)
        table.append([workload, row["value"], unit, row["floor"], row["share_of_floor"]])
        print(f"{workload}: {row['value']:.4g} {unit}", flush=True)
        if options.out:  # after each: a run cut short leaves what it has measured
            write_results(options.out, rows)

    with tempfile.TemporaryDirectory() as scratch:
        model = str(options.model) if options.model else f"random:{options.model_shape}"
        if options.engine != "quire" and not options.model:
            model = str(random_directory(options.model_shape, Path(scratch)))
        if chosen:
            begin = time.perf_counter()
            engine = ENGINES[options.engine](model, **options_of(options.option))
            print(f"engine built in {time.perf_counter() - begin:.1f} s", flush=True)
            measured = Workloads(engine, options.runs)
            for workload in chosen:
                figures, unit = measured.run(workload)
                note(workload, figures, unit)
        if "start" in options.workloads and options.engine == "quire":
            if chosen:
                del engine, measured
                _free_device()
            directory = options.model or random_directory(options.model_shape, Path(scratch))
            note("start", start_seconds(directory, options.runs), "s")

    print_table(f"{options.engine}, {name}", ["workload", "value", "unit", "floor", "share"], table)


def _free_device() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
