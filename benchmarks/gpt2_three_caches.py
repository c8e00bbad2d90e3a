"""The example that this project began with: GPT-2 with a paged cache, with a plain one, with none.

The model is GPT-2's smallest shape with random weights, written as transformers writes it, in fp32
on the CPU. The same requests (3 prompts that begin alike and end apart, 12 greedy tokens each, no
EOS) are answered one by one, in one process, by

    quire           Quire, its prefix cache emptied before
    quire, kept     Quire again: the prompts are still in its blocks
    own cache       transformers' generate, with its key/value cache
    no cache        transformers' generate, use_cache=False: every token computes all before it

and by Quire with all of them at once. All must give the same tokens. Figures are ratios over "no
cache" of the same round, medians of some rounds: the machine is shared, and only ratios mean
anything.

    python benchmarks/gpt2_three_caches.py --out benchmarks/results/gpt2-three-caches.json
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
from engines import Ask, QuireEngine

NEW, SHARED, ALONE = 12, 96, 16
VOCAB = 50_257
_BASE = "no cache"

Tokens = list[list[int]]


def requests(vocab: int = VOCAB) -> list[Ask]:
    """The workload, by seed."""
    draw = random.Random(0)
    first = [draw.randrange(vocab) for _ in range(SHARED)]
    return [Ask([*first, *(draw.randrange(vocab) for _ in range(ALONE))], NEW) for _ in range(3)]


class Quire:
    """Quire's own loop; its outputs are kept."""

    def __init__(self, directory: Path) -> None:
        options = {"dtype": "float32", "device": "cpu", "cpu_kv_gib": 0.5}
        limits = {"max_model_len": 256, "max_num_seqs": 4, "max_num_batched_tokens": 1024}
        self._engine = QuireEngine(str(directory), **options, **limits)

    def forget(self) -> None:
        self._engine.forget()

    def generate(self, asks: Sequence[Ask]) -> Tokens:
        """All at once, in the order of the requests."""
        from quire.engine.request import GenerationRequest, SamplingParams

        core = self._engine.engine.core
        for key, ask in enumerate(asks):
            sampling = SamplingParams(max_tokens=ask.max_tokens, ignore_eos=True)
            core.scheduler.submit(GenerationRequest(key, tuple(ask.prompt), sampling))
        made: Tokens = [[] for _ in asks]
        while core.scheduler.has_requests:
            for output in core.step():
                made[output.key] += output.token_ids
        return made

    def one_by_one(self, asks: Sequence[Ask]) -> Tokens:
        return [self.generate([ask])[0] for ask in asks]


class Transformers:
    """generate() on the same checkpoint, one by one."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    @torch.inference_mode()
    def one_by_one(self, asks: Sequence[Ask], *, cache: bool) -> Tokens:
        made = []
        for ask in asks:
            out = self._model.generate(
                torch.tensor([list(ask.prompt)]),
                attention_mask=torch.ones(1, len(ask.prompt), dtype=torch.int64),
                do_sample=False,
                max_new_tokens=ask.max_tokens,
                min_new_tokens=ask.max_tokens,
                pad_token_id=0,
                eos_token_id=None,
                use_cache=cache,
            )
            made.append(out[0, len(ask.prompt) :].tolist())
        return made


def write_checkpoint(directory: Path, **smaller: int) -> None:
    """GPT-2 as transformers makes it, with noise wide enough that its tokens vary. smaller: what of
    its configuration differs."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(initializer_range=0.1, bos_token_id=None, eos_token_id=None, **smaller)
    GPT2LMHeadModel(config).save_pretrained(directory)


def ways(ours: Quire, theirs: Transformers, asks: Sequence[Ask]) -> dict[str, Callable[[], Tokens]]:
    """What is measured, in the order of a round: what is kept follows what fills it."""

    def cold() -> Tokens:
        ours.forget()
        return ours.one_by_one(asks)

    def at_once() -> Tokens:
        ours.forget()
        return ours.generate(asks)

    return {
        "quire": cold,
        "quire, kept": lambda: ours.one_by_one(asks),
        "quire, all at once": at_once,
        "own cache": lambda: theirs.one_by_one(asks, cache=True),
        _BASE: lambda: theirs.one_by_one(asks, cache=False),
    }


def measured(work: dict[str, Callable[[], Tokens]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round. Raises RuntimeError where two ways do not agree on the
    tokens."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        made: dict[str, Tokens] = {}
        for name, run in work.items():
            begin = time.perf_counter()
            made[name] = run()
            seconds[name].append(time.perf_counter() - begin)
        other = next((name for name in made if made[name] != made[_BASE]), None)
        if other is not None:
            raise RuntimeError(f"{other}: not the tokens of {_BASE}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        write_checkpoint(directory)
        asks = requests()
        ours, theirs = Quire(directory), Transformers(directory)
        for run in ways(ours, theirs, asks[:1]).values():  # one request, which does not count
            run()
        seconds = measured(ways(ours, theirs, asks), options.rounds)
    rows: list[dict[str, Any]] = []
    table: list[list[Any]] = []
    for name, runs in seconds.items():
        ratios = [base / mine for base, mine in zip(seconds[_BASE], runs, strict=True)]
        engine = "quire" if name.startswith("quire") else "transformers"
        rows.append(result_row(f"gpt2: {name}", "gpt2", engine, ratios, "x of no cache"))
        tokens = len(asks) * NEW / statistics.median(runs)
        table.append([name, statistics.median(ratios), min(ratios), max(ratios), tokens])
    head = ["", "times no cache", "least", "most", "tokens/s"]
    print_table(f"GPT-2 124M, fp32, {len(asks)} requests of {SHARED + ALONE} + {NEW}", head, table)
    if options.out:
        write_results(options.out, rows)


if __name__ == "__main__":
    main()
