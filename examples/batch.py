"""Chat prompts straight on the engine, without a server: two batches, and what they took.

    python examples/batch.py --prompts 6 --max-tokens 32
    python examples/batch.py --model Qwen/Qwen3-0.6B --temperature 0

All prompts begin with one system message: the second batch finds it in the prefix cache.

Invariant: every figure that is shown was measured in this run.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from in_process import Completion, Local, local
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, QuireError
from quire.v1 import inference_pb2 as pb

_MIB = 1 << 20
SYSTEM = (
    "You are a patient guide in a small museum by the sea. People of every age come to you with "
    "questions, and you have time for each of them. You answer in plain words that a curious child "
    "can follow, with one small example where it helps, and you never say more than is needed. If "
    "you are asked for a story, you tell a short one with a beginning, a middle and an end, in "
    "which somebody wants something, meets with trouble, and finds a way. If you are asked what "
    "something is, you say it in one or two sentences. If you do not know, you say so, and you "
    "never make anything up. You are kind, you are brief, and you do not repeat the question."
)
SUBJECTS = (
    *("a rainbow", "a compass", "the moon", "a bird", "an echo", "a spider", "a leaf"),
    *("a lighthouse", "a glacier", "honey", "a clock", "a sail", "a volcano", "rain", "a magnet"),
    *("winter", "a bicycle", "the sea", "a kite", "a bee", "the wind", "a mirror", "a seed"),
    *("an hourglass", "a star", "a river", "a baker", "a mountain", "a library", "bread"),
)
ASKED = ("Tell me a short story about {}.", "What is {}?")


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How many prompts (half of each kind), and how each is answered."""

    prompts: int = 60
    max_tokens: int = 256
    temperature: float = 0.6

    def __post_init__(self) -> None:
        most = len(ASKED) * len(SUBJECTS)
        if not 2 <= self.prompts <= most or self.prompts % len(ASKED):
            raise ConfigError(f"prompts = {self.prompts}: must be even, and 2 to {most}")
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens = {self.max_tokens}: must be at least 1")
        if not 0 <= self.temperature <= 100:
            raise ConfigError(f"temperature = {self.temperature}: must be 0 to 100")


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What one batch gave and took. Seconds; prompt tokens looked up, and found, in the cache."""

    questions: list[str]
    completions: list[Completion]
    seconds: float
    prefix_queried: int
    prefix_hit: int

    @property
    def tokens(self) -> int:
        """Tokens made."""
        return sum(len(c.ids) for c in self.completions)


def batches(count: int) -> list[list[str]]:
    """One batch of questions of each kind, `count` in all."""
    subjects = SUBJECTS[: count // len(ASKED)]
    return [[asked.format(subject) for subject in subjects] for asked in ASKED]


def chat_request(question: str, seed: int, options: BatchOptions) -> pb.GenerateRequest:
    """One question behind the common system message."""
    messages = [
        pb.ChatMessage(role="system", content=SYSTEM),
        pb.ChatMessage(role="user", content=question),
    ]
    sampling = pb.SamplingParams(
        temperature=options.temperature, max_tokens=options.max_tokens, seed=seed
    )
    return pb.GenerateRequest(chat=pb.Chat(messages=messages), sampling=sampling)


async def answer(
    engine: Local, questions: list[str], options: BatchOptions, bar: Progress
) -> BatchResult:
    """One batch, all at once; the bar advances by one an answer."""
    task = bar.tasks[0].id
    before, began = engine.engine.stats(), time.monotonic()

    async def one(seed: int, question: str) -> Completion:
        completion = await engine.complete(chat_request(question, seed, options))
        bar.advance(task)
        return completion

    jobs = [one(seed, question) for seed, question in enumerate(questions)]
    completions = list(await asyncio.gather(*jobs))
    seconds, after = time.monotonic() - began, engine.engine.stats()
    return BatchResult(
        questions,
        completions,
        seconds,
        after.prefix_tokens_queried - before.prefix_tokens_queried,
        after.prefix_tokens_hit - before.prefix_tokens_hit,
    )


def run_batch(config: EngineConfig, options: BatchOptions) -> int:
    """Answers, shows one of each batch, and a table. Returns the exit code; raises QuireError."""
    return asyncio.run(_run(config, options))


async def _run(config: EngineConfig, options: BatchOptions) -> int:
    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    async with local(config) as engine:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            bar.add_task("answers", total=options.prompts)
            results = [
                await answer(engine, questions, options, bar)
                for questions in batches(options.prompts)
            ]
        console = Console()
        for result in results:
            console.print(f"> {result.questions[0]}", style="bold", markup=False)
            console.print(result.completions[0].text.strip(), markup=False, highlight=False)
        console.print(_table(engine, results))
    return 0


def _table(engine: Local, results: list[BatchResult]) -> Table:
    info, stats = engine.model.info, engine.engine.stats()
    table = Table(title=f"{engine.model.name} on {info.device}, {info.dtype}")
    table.add_column("")
    for name in ("stories", "questions"):
        table.add_column(name, justify="right")
    rows = [_column(result) for result in results]
    for cells in zip(*rows, strict=True):
        table.add_row(cells[0][0], *(value for _, value in cells))
    table.add_section()
    table.add_row("memory now", f"{stats.memory_allocated / _MIB:.0f} MiB")
    table.add_row("memory at its peak", f"{stats.memory_peak / _MIB:.0f} MiB")
    return table


def _column(result: BatchResult) -> list[tuple[str, str]]:
    done = result.completions
    hit_rate = result.prefix_hit / max(result.prefix_queried, 1)
    return [
        ("requests", str(len(done))),
        ("tokens made", str(result.tokens)),
        ("the batch", f"{result.seconds:.2f} s"),
        ("tokens/s", f"{result.tokens / result.seconds:.0f}"),
        ("a request, its share of the batch", f"{result.seconds / len(done) * 1000:.0f} ms"),
        ("a request, median from asking to end", f"{statistics.median(_totals(done)):.2f} s"),
        ("first token, median", f"{statistics.median(c.first_token for c in done):.3f} s"),
        ("prompt tokens", str(result.prefix_queried)),
        ("of these found in the prefix cache", f"{result.prefix_hit} ({hit_rate:.0%})"),
    ]


def _totals(completions: list[Completion]) -> list[float]:
    return [c.total for c in completions]


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2, with one line on standard error, for what a person can mend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help="directory, Hub id, pocket, random:SHAPE")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--num-blocks", type=int, help="cache blocks; default: from free memory")
    parser.add_argument("--prompts", type=int, default=60, help="half of each kind")
    parser.add_argument("--max-tokens", type=int, default=256, help="most tokens of each answer")
    parser.add_argument("--temperature", type=float, default=0.6, help="0 is greedy")
    given = parser.parse_args(words)
    try:
        options = BatchOptions(given.prompts, given.max_tokens, given.temperature)
        config = EngineConfig(model=given.model, device=given.device, num_blocks=given.num_blocks)
        return run_batch(config, options)
    except QuireError as error:
        print(f"batch: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
