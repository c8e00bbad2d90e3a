"""What constraints cost: tokens a second with some and with all streams under one, against none.

A fake device of 5 ms a step under the real engine's loop, with real matchers of JSON schemas over
the embedded model's vocabulary. Rounds of none, some and all follow one another, and a share is of
one round. Beside each: what the device waited for the host a step, and the machine's load.

    8 of 64     at least 0.97 of the tokens a second of none
    64 of 64    at least 0.90

    python benchmarks/constraints.py [--rounds 7] [--out benchmarks/results/constraints.json]

With `--model-shape` a model of random weights stands in the fake device's place: its vocabulary is
larger than the tokenizer, and what has no text no constraint allows.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import Row, print_table, result_row, write_results
from engines import QuireEngine
from fake_device import VOCAB_SIZE, FakeEngine

from quire.engine.config import EngineConfig
from quire.engine.loop import garbage
from quire.engine.request import Constraint, GenerationRequest, SamplingParams, Vocabulary
from quire.engine.scheduling.matching import Matchers, constrained
from quire.service.constraints.grammars import Grammars
from quire.service.constraints.matcher_batch import THREADS
from quire.service.models import pocket

STREAMS = 64
FLOORS = {8: 0.97, STREAMS: 0.90}
PROMPT = 64
SCHEMA = {
    "type": "array",
    "minItems": 500,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 24},
            "kind": {"enum": ["stone", "leaf", "water"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 9999},
            "parts": {"type": "array", "items": {"type": "boolean"}, "maxItems": 4},
        },
        "required": ["name", "kind", "count", "parts"],
        "additionalProperties": False,
    },
}
CONSTRAINT = Constraint("json_schema", json.dumps(SCHEMA))


def grammars(vocab_size: int) -> Matchers:
    """What makes matchers, for the embedded model's tokenizer and so many logits a token."""
    made = Grammars(THREADS)
    text = (pocket.directory() / "tokenizer.json").read_text(encoding="utf-8")
    made.set_vocabulary(Vocabulary(text, vocab_size, (2,)))
    return made


class Engines:
    """A fresh engine on the fake device for each measurement, or always the one of a shape.
    matchers: as `quire serve` has them."""

    def __init__(self, shape: str | None, step_seconds: float) -> None:
        self._step_seconds = step_seconds
        self._engine: Any = None
        vocab_size = VOCAB_SIZE
        if shape is not None:
            self._engine = QuireEngine(f"random:{shape}", max_num_seqs=STREAMS).engine
            vocab_size = self._engine.info.vocab_size
        self.matchers = grammars(vocab_size)
        if self._engine is not None:
            self._engine.core.scheduler.completion.advance = self.matchers.advance
            self.matchers.set_concurrent_work(self._engine.core.plan_concurrently)
            self.matchers.write_to(self._engine.runner.mask_room)

    def next(self) -> Any:
        if self._engine is not None:
            return self._engine
        config = EngineConfig(max_num_seqs=STREAMS, max_model_len=4096, max_num_batched_tokens=8192)
        return FakeEngine(config, self._step_seconds, self.matchers)


def asked(key: int, steps: int, constraint: Constraint | None) -> GenerationRequest:
    """Never ends before its last token."""
    prompt = tuple(1000 + (key * 31 + i) % 2000 for i in range(PROMPT))
    params = SamplingParams(max_tokens=steps, ignore_eos=True)
    return GenerationRequest(key, prompt, params, constraint=constraint)


def measure(matchers: Matchers, engine: Any, count: int, steps: int) -> tuple[float, float | None]:
    """Tokens a second of STREAMS streams of which `count` are constrained, from the step after the
    prompts on; and microseconds that the fake device waited a step."""
    core = engine.core
    for key in range(STREAMS):
        request = asked(key, steps + 8, CONSTRAINT if key < count else None)
        matched = constrained(matchers.compile(CONSTRAINT), request) if key < count else ()
        core.scheduler.submit(request, matched)
    counters = core.scheduler.counters
    first = counters.steps
    while counters.steps < first + 6:
        core.step()
    garbage.freeze()  # as the server does
    idle = getattr(engine.runner, "idle_seconds", None)
    before, began = counters.steps, time.monotonic()
    tokens = 0
    while counters.steps < before + steps - 8:
        tokens += sum(len(output.token_ids) for output in core.step())
    seconds, taken = time.monotonic() - began, counters.steps - before
    waited = None if idle is None else (engine.runner.idle_seconds - idle) / taken * 1e6
    while core.scheduler.has_requests:
        core.step()
    return tokens / seconds, waited


def rounds(options: argparse.Namespace) -> dict[int, list[dict[str, Any]]]:
    """Of each number of constrained streams, what each round gave."""
    engines = Engines(options.model_shape, options.step_ms / 1e3)
    matchers = engines.matchers
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in (0, *FLOORS)}
    if options.model_shape is not None:  # what is captured once is not of a round
        for count in found:
            measure(matchers, engines.next(), count, 24)
    for _ in range(options.rounds):
        for count, rows in found.items():
            rate, idle = measure(matchers, engines.next(), count, options.steps)
            rows.append({"rate": rate, "idle_us": idle, "load": os.getloadavg()[0]})
    return found


def report(found: dict[int, list[dict[str, Any]]], device: str) -> list[Row]:
    """Rows for the file, and a table."""
    rows: list[Row] = []
    table: list[list[Any]] = []
    for count, runs in found.items():
        rates = [run["rate"] for run in runs]
        shares = [run["rate"] / none["rate"] for run, none in zip(runs, found[0], strict=True)]
        share = statistics.median(shares)
        load = statistics.median(run["load"] for run in runs)
        waited = [run["idle_us"] for run in runs if run["idle_us"] is not None]
        idle = statistics.median(waited) if waited else None
        more = {"shares": shares, "share": share, "least_share": FLOORS.get(count), "load": load}
        name = f"constraints-{count}-of-{STREAMS}"
        rows.append(result_row(name, device, "quire", rates, "tokens/s", idle_us=idle, **more))
        table.append([f"{count} of {STREAMS}", statistics.median(rates), share, idle, load])
    columns = ["constrained", "tokens/s", "of none", "device waits us", "load"]
    print_table("what constraints cost", columns, table)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--step-ms", type=float, default=5.0)
    parser.add_argument("--model-shape", help="such as 0.6B, on this machine's GPU")
    parser.add_argument("--out", type=Path, default=None, help="write results as JSON")
    options = parser.parse_args()
    rows = report(rounds(options), options.model_shape or "fake")
    if options.out is not None:
        write_results(options.out, rows)


if __name__ == "__main__":
    main()
