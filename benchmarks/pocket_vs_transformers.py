"""Tokens a second of a demo conversation: a Quire server over gRPC, and transformers alone.

    python benchmarks/pocket_vs_transformers.py [--rounds 7] [--output FILE]

One conversation, greedy, each turn asked when the one before is answered, in the same run and in
turns (who begins alternates). Both compute in fp32 on the same cores; transformers' share is
`generate` on the tokens alone, without a server or text. Each round has a cache salt of its own, so
Quire finds in its cache only what this round has said. Both must give the same answers.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import Row, print_table, result_row, write_results

from quire.clients import Client, Message
from quire.service.models import pocket

QUESTIONS = (
    "Hello, who are you?",
    "What is prefix caching?",
    "Remember these facts. The code of Anna is 4812. The city of Tom is Oslo.",
    "Tell me a short story about a fox.",
    "Count from 1 to 20.",
    "What is the city of Tom?",
    "Repeat after me: small models can be useful, too",
    "What is 17 + 25?",
)
MAX_TOKENS = 160


class Quire:
    """A `quire serve` process and a client of it."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def round(self, number: int) -> tuple[list[str], int, float]:
        """Answers, tokens made, seconds."""
        chat: list[Message] = []
        tokens, start = 0, time.perf_counter()
        for question in QUESTIONS:
            chat.append(Message("user", question))
            [done] = self._client.generate(
                chat, temperature=0.0, max_tokens=MAX_TOKENS, cache_salt=f"round {number}"
            ).completions()
            tokens += len(done.token_ids)
            chat.append(Message("assistant", done.text))
        seconds = time.perf_counter() - start
        return [turn.content for turn in chat[1::2]], tokens, seconds


class Transformers:
    """`generate` in this process."""

    def __init__(self, directory: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self._model: Any = model.eval()
        self._torch = torch

    def round(self, number: int) -> tuple[list[str], int, float]:
        """Answers, tokens made, seconds; the template's and the text's time is left out."""
        del number
        chat: list[dict[str, str]] = []
        tokens, seconds = 0, 0.0
        for question in QUESTIONS:
            chat.append({"role": "user", "content": question})
            asked = self._tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            start = time.perf_counter()
            with self._torch.inference_mode():
                out = self._model.generate(**asked, max_new_tokens=MAX_TOKENS, do_sample=False)
            seconds += time.perf_counter() - start
            made = out[0, asked["input_ids"].shape[1] :]
            tokens += len(made)
            text = self._tokenizer.decode(made, skip_special_tokens=True)
            chat.append({"role": "assistant", "content": text})
        return [turn["content"] for turn in chat[1::2]], tokens, seconds


@contextmanager
def quire() -> Iterator[Quire]:
    """A server of the embedded model on a free port, gone afterwards."""
    command = [str(Path(sys.executable).with_name("quire")), "serve"]
    command += ["--port", "0", "--http-port", "0", "--log-level", "warning"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("serving "):
                with Client(line.split(" on ")[1].strip()) as client:
                    yield Quire(client)
                return
        raise SystemExit(f"quire serve ended with exit code {process.wait()}")
    finally:
        process.terminate()
        process.wait(60)


def measure(engines: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Tokens a second of each round, by engine. Raises AssertionError if answers differ."""
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        engine.round(-1)  # warm
    for number in range(rounds):
        order = list(engines) if number % 2 == 0 else list(reversed(engines))
        answers = {}
        for name in order:
            answers[name], tokens, seconds = engines[name].round(number)
            rates[name].append(tokens / seconds)
        first, *others = answers.values()
        assert all(other == first for other in others), f"answers differ: {answers}"
    return rates


def rows(rates: dict[str, list[float]]) -> list[Row]:
    """One row an engine; Quire's also has the ratio of each round."""
    pairs = zip(rates["quire"], rates["transformers"], strict=True)
    ratios = [ours / theirs for ours, theirs in pairs]
    more = {"quire": {"ratios": ratios, "ratio": statistics.median(ratios)}, "transformers": {}}
    return [
        result_row("pocket-conversation", "pocket", name, runs, "tokens/s", **more[name])
        for name, runs in rates.items()
    ]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the rows here, as JSON")
    options = parser.parse_args()
    with quire() as served:
        both = {"quire": served, "transformers": Transformers(pocket.directory())}
        found = rows(measure(both, options.rounds))
    table = [[r["engine"], r["value"], min(r["runs"]), max(r["runs"])] for r in found]
    print_table("conversation, fp32", ["engine", "tokens/s", "least", "most"], table)
    print(f"quire is {found[0]['ratio']:.2f} times as fast (median of {options.rounds} rounds)")
    if options.output is not None:
        write_results(options.output, found)


if __name__ == "__main__":
    main()
