"""What the prefix cache saves, and what a KV cache saves.

Two tables from one run. The first serves the same requests, which share a long beginning, with the
prefix cache on and off. The second decodes one request with Quire's paged cache and, with
--transformers, also with transformers' own cache, and with none (the whole sequence again for each
token), on the same weights. The ways take turns, so that a busy machine slows all of them.

    python benchmarks/prefix_cache.py --out FILE
    python benchmarks/prefix_cache.py --model random:0.6B --transformers
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from common import Row, print_table, result_row, write_results
from engines import Ask, QuireEngine, timed

from quire.engine.config import EngineConfig
from quire.engine.errors import QuireError
from quire.engine.model.load_config import RANDOM_PREFIX
from quire.engine.scheduling.prefix_cache import PrefixCache
from quire.engine.weights.random import save_random
from quire.service.models.resolve import resolve

SHARED_SHARE = 0.5  # of max_model_len, that all requests begin with
MAX_SHARED = 1024
OWN = 16  # tokens of each request that no other has
ANSWER = 8  # tokens that each makes
DECODE_PROMPT = 32
FIRST_ID = 256  # lower ids may be special
QUIRE, CACHED, UNCACHED = "Quire's paged cache", "transformers' cache", "no cache (transformers)"


@dataclass(frozen=True, slots=True)
class PrefixRun:
    """Serving the requests of the first table once. Seconds, and tokens of prompts."""

    seconds: float
    prompt: int
    computed: int
    hit: int


def made_up(count: int, start: int, vocab_size: int) -> list[int]:
    """Token ids that differ from place to place."""
    room = vocab_size - FIRST_ID
    return [FIRST_ID + (start * 7919 + i * 104_729) % room for i in range(count)]


def sharing(requests: int, max_model_len: int, vocab_size: int) -> list[Ask]:
    """Requests with a common beginning; each goes on in its own way."""
    shared = made_up(min(int(max_model_len * SHARED_SHARE), MAX_SHARED), 0, vocab_size)
    return [
        Ask([*shared, *made_up(OWN, number, vocab_size)], ANSWER)
        for number in range(1, requests + 1)
    ]


def set_caching(engine: QuireEngine, caching: bool) -> None:
    """Turn the prefix cache on or off, empty, between requests: one engine measures both."""
    engine.forget()
    pool = engine.engine.core.scheduler.pool
    pool.prefix_cache = PrefixCache(pool.block_size, caching)


def serve_sharing(engine: QuireEngine, asks: Sequence[Ask]) -> PrefixRun:
    """The first request alone, then all others at once."""
    before = engine.engine.stats()
    seconds = timed(engine, asks[:1]) + timed(engine, asks[1:])
    after = engine.engine.stats()
    return PrefixRun(
        seconds,
        after.prompt_tokens - before.prompt_tokens,
        after.prefill_computed - before.prefill_computed,
        after.prefix_tokens_hit - before.prefix_tokens_hit,
    )


def measure_sharing(engine: QuireEngine, requests: int, rounds: int) -> dict[bool, list[PrefixRun]]:
    """Rounds with the prefix cache (True) and without (False), in turn, after one to warm up."""
    info = engine.engine.info
    asks = sharing(requests, info.max_model_len, info.vocab_size)
    runs: dict[bool, list[PrefixRun]] = {True: [], False: []}
    for number in range(rounds + 1):
        for caching in runs:
            set_caching(engine, caching)
            run = serve_sharing(engine, asks)
            if number:
                runs[caching].append(run)
    return runs


def a_token(work: Callable[[int], float], tokens: int) -> float:
    """Seconds a token of `tokens`, without the first one's; work(n): seconds for n of them."""
    first = work(1)
    return max(work(tokens) - first, 1e-9) / (tokens - 1)


class Transformers:
    """generate() on the same weights, with its cache or without."""

    def __init__(self, directory: Path, dtype: str, device: str, prompt: list[int]) -> None:
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=getattr(torch, dtype), use_safetensors=True
        )
        self._model = model.to(device).eval()
        self._model.generation_config.eos_token_id = None  # to the last token, as Quire does
        self._ids = torch.tensor([prompt], device=device)

    @torch.inference_mode()
    def seconds(self, count: int, use_cache: bool) -> float:
        """For `count` new tokens, prefill included."""
        begin = time.perf_counter()
        self._model.generate(
            self._ids,
            attention_mask=torch.ones_like(self._ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            use_cache=use_cache,
            pad_token_id=0,
        ).cpu()
        return time.perf_counter() - begin


def measure_decoding(
    engine: QuireEngine, directory: Path, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds a token of one request, by each way; rounds of each, in turn, after a warm-up."""
    info = engine.engine.info
    prompt = made_up(DECODE_PROMPT, 0, info.vocab_size)

    def quire(count: int) -> float:
        engine.forget()
        return timed(engine, [Ask(prompt, count)])

    ways: dict[str, Callable[[int], float]] = {QUIRE: quire}
    if options.transformers:
        theirs = Transformers(directory, info.dtype, info.device.split()[0], prompt)
        ways[CACHED] = lambda count: theirs.seconds(count, True)
        ways[UNCACHED] = lambda count: theirs.seconds(count, False)
    for work in ways.values():
        work(2)
    runs: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, work in ways.items():
            runs[name].append(a_token(work, options.tokens))
    return runs


def report_sharing(model: str, requests: int, runs: dict[bool, list[PrefixRun]]) -> list[Row]:
    """Print the first table; its rows for the file."""
    medians = {c: statistics.median(run.seconds for run in runs[c]) for c in runs}
    table, rows = [], []
    for caching, measured in runs.items():
        name, last = "on" if caching else "off", measured[-1]
        times = medians[False] / medians[caching]
        table.append([name, medians[caching], last.prompt, last.computed, last.hit, times])
        seconds = [run.seconds for run in measured]
        tokens = {"prompt": last.prompt, "computed": last.computed, "found": last.hit}
        rows.append(result_row(f"prefix cache {name}", model, "quire", seconds, "s", **tokens))
    columns = ["prefix cache", "seconds", "prompt tokens", "computed", "found", "times as fast"]
    print_table(f"{requests} requests with a common beginning", columns, table)
    return rows


def report_decoding(model: str, tokens: int, runs: dict[str, list[float]]) -> list[Row]:
    """Print the second table; its rows for the file."""
    medians = {name: statistics.median(seconds) for name, seconds in runs.items()}
    slowest = medians.get(UNCACHED)
    table = [
        [name, value * 1000, 1 / value, slowest / value if slowest else None]
        for name, value in medians.items()
    ]
    columns = ["decoding with", "ms a token", "tokens/s", "times as fast"]
    print_table(f"one request, {tokens} tokens", columns, table)
    return [
        result_row(
            f"decode: {name}",
            model,
            "quire" if name == QUIRE else "transformers",
            [seconds * 1000 for seconds in runs[name]],
            "ms/token",
        )
        for name in runs
    ]


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value}: must be at least {least}")
        return value

    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help="directory, Hub id, pocket, random:SHAPE")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--num-blocks", type=int, help="cache blocks; default: from free memory")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.4, help="share to use")
    parser.add_argument("--requests", type=_at_least(2), default=16, help="of the first table")
    parser.add_argument("--tokens", type=_at_least(2), default=64, help="that the second decodes")
    parser.add_argument("--rounds", type=_at_least(1), default=3, help="of each way")
    parser.add_argument(
        "--transformers", action="store_true", help="decode with transformers too (pip install it)"
    )
    parser.add_argument("--out", type=Path, default=None, help="write results as JSON")
    return parser


def _directory(model: str, scratch: Path) -> Path:
    """The model's files; those of a random shape are written, so that every way has the same."""
    found = resolve(EngineConfig(model=model)).engine_model
    if not found.startswith(RANDOM_PREFIX):
        return Path(found)
    save_random(found.removeprefix(RANDOM_PREFIX), scratch / "model", seed=0)
    return scratch / "model"


def measure(options: argparse.Namespace) -> list[Row]:
    """Both tables. Raises QuireError; ImportError, before anything is measured."""
    if options.transformers:
        import transformers  # noqa: F401
    with tempfile.TemporaryDirectory() as scratch:
        directory = _directory(options.model, Path(scratch))
        engine = QuireEngine(
            str(directory),
            max_model_len=None,
            max_num_batched_tokens=8192,
            device=options.device,
            num_blocks=options.num_blocks,
            gpu_memory_utilization=options.gpu_memory_utilization,
        )
        shared = measure_sharing(engine, options.requests, options.rounds)
        rows = report_sharing(options.model, options.requests, shared)
        decoded = measure_decoding(engine, directory, options)
        return rows + report_decoding(options.model, options.tokens, decoded)


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    options = _parser().parse_args(words)
    try:
        rows = measure(options)
    except (QuireError, ImportError) as error:
        print(f"prefix_cache: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if options.out:
        write_results(options.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
