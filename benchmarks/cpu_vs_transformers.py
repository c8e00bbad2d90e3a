"""Quire against transformers on the CPU: same weights, same requests, one process, pairs in turn.

The model is `random:bench` (hidden 512, 8 layers, vocabulary 32k). 16 prompts of 32 to 256 ids, 128
new tokens each, greedy, no EOS. Each engine runs in whichever of fp32 and bf16 is the faster for
it. Figures are medians of interleaved pairs, and only ratios mean anything: the machine is shared.

    batch       Quire, 16 at once / transformers, one by one, and its left-padded batch
    alone       one request: Quire / transformers
    outside     share of a Quire step that is spent outside the model's forward pass

    python benchmarks/cpu_vs_transformers.py --out benchmarks/results/cpu-vs-transformers.json
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from common import print_table, result_row, write_results
from engines import Ask, QuireEngine, timed

NEW = 128
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WANTED = {"batch / one by one": 3.0, "batch / padded": 1.1, "alone / alone": 1.0}


def requests() -> list[Ask]:
    """The workload, by seed."""
    draw = random.Random(0)
    lengths = [draw.randint(32, 256) for _ in range(16)]
    return [Ask([draw.randrange(1, 32_000) for _ in range(n)], NEW) for n in lengths]


class Transformers:
    """generate() on the same checkpoint, one by one or left-padded."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()

    @torch.inference_mode()
    def generate(self, asks: Sequence[Ask]) -> None:
        """One padded batch."""
        width = max(len(ask.prompt) for ask in asks)
        ids = torch.tensor([[0] * (width - len(a.prompt)) + list(a.prompt) for a in asks])
        mask = torch.tensor([[0] * (width - len(a.prompt)) + [1] * len(a.prompt) for a in asks])
        made = self._model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            pad_token_id=0,
            eos_token_id=None,
        )
        if made.shape[1] != width + NEW:
            raise RuntimeError(f"{made.shape[1] - width} tokens came, {NEW} were asked for")


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def faster(build: Callable[[str], Any], work: Callable[[Any], object]) -> tuple[Any, str]:
    """The engine in its faster dtype, and that dtype; the loser is dropped."""
    found = []
    for name in DTYPES:
        engine = build(name)
        work(engine)
        found.append((min(seconds(lambda: work(engine)) for _ in range(2)), name, engine))  # noqa: B023
    _, name, engine = min(found, key=lambda item: item[0])
    return engine, name


def outside_share(engine: QuireEngine, asks: Sequence[Ask]) -> float:
    """Share of the time for a batch that is not the model's forward pass and logits."""
    model = engine.engine.runner._model
    spent, kept = 0.0, (model.forward, model.logits)

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal spent
            begin = time.perf_counter()
            try:
                return function(*args)
            finally:
                spent += time.perf_counter() - begin

        return call

    model.forward, model.logits = map(watched, kept)
    try:
        engine.forget()
        total = timed(engine, asks)
    finally:
        model.forward, model.logits = kept
    return 1 - spent / total


def compare(directory: Path, pairs: int) -> tuple[dict[str, list[float]], float]:
    """Quire's speed over transformers', by what is compared, and its share outside the model."""
    asks = requests()

    def quire(name: str) -> QuireEngine:
        return QuireEngine(
            str(directory),
            dtype=name,
            max_num_seqs=16,
            max_num_batched_tokens=2048,
            max_model_len=512,
            cpu_kv_gib=0.5,
        )

    def fresh(engine: QuireEngine, some: Sequence[Ask]) -> float:
        engine.forget()
        return timed(engine, some)

    def theirs(some: Sequence[Ask]) -> tuple[Transformers, str]:
        return faster(lambda n: Transformers(directory, DTYPES[n]), lambda e: e.generate(some))

    ours, our_dtype = faster(quire, lambda e: fresh(e, asks))
    lone, lone_dtype = faster(quire, lambda e: fresh(e, asks[:1]))
    batched, batched_dtype = theirs(asks)
    single, single_dtype = theirs(asks[:1])
    print(
        f"dtypes: quire {our_dtype}, alone {lone_dtype}; transformers batched "
        f"{batched_dtype}, one by one {single_dtype}",
        flush=True,
    )
    ratios: dict[str, list[float]] = {name: [] for name in WANTED}
    for _ in range(pairs):
        mine = fresh(ours, asks)
        padded = seconds(lambda: batched.generate(asks))
        one_by_one = seconds(lambda: [single.generate([ask]) for ask in asks])
        ratios["batch / one by one"].append(one_by_one / mine)
        ratios["batch / padded"].append(padded / fresh(ours, asks))
        mine = fresh(lone, asks[:1])
        ratios["alone / alone"].append(seconds(lambda: single.generate(asks[:1])) / mine)
    return ratios, outside_share(ours, asks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        from quire.engine.weights.random import save_random

        directory = Path(scratch) / "bench"
        save_random("bench", directory, seed=0)
        ratios, share = compare(directory, options.pairs)
    rows = [
        result_row(f"cpu: {name}", "bench", "quire", runs, "x") for name, runs in ratios.items()
    ]
    rows.append(result_row("cpu: outside the model", "bench", "quire", [share], "share"))
    table = [
        [name, statistics.median(runs), min(runs), max(runs), WANTED[name]]
        for name, runs in ratios.items()
    ]
    print_table(
        "tokens/s of Quire over transformers', CPU", ["", "median", "min", "max", "wanted"], table
    )
    print(f"share of a step outside the model: {share:.1%}")
    if options.out:
        write_results(options.out, rows)


if __name__ == "__main__":
    main()
