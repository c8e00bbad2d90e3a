"""CPU time of each part of a step, and what the device waited for it.

Runs anywhere, on a device that only takes time. Parts:
    schedule   plan the step
    launch     upload what changed, enqueue the step (on the fake device: nothing)
    apply      take the result in, find ends, register blocks
    hand over  put the outputs on the event loop's streams

    python benchmarks/host.py                       # fake device, batch 1, 64, 256
    python benchmarks/host.py --step-ms 1 --batches 1 256
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import print_table, write_results
from fake_device import FakeEngine

from quire.engine.client.stream import Stream
from quire.engine.config import EngineConfig
from quire.engine.loop import garbage
from quire.engine.request import GenerationRequest, SamplingParams

PROMPT = 128


class Stopwatch:
    """Adds up what wrapped functions take, by name."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = defaultdict(list)

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.samples[name].append(time.perf_counter() - begin)

        return timed

    def median_us(self, name: str) -> float:
        return statistics.median(self.samples[name]) * 1e6


def measure(engine: Any, batch: int, steps: int) -> dict[str, float]:
    """Medians in microseconds of each part, over `steps` decode steps of `batch` rows."""
    core, watch = engine.core, Stopwatch()
    params = SamplingParams(max_tokens=steps + 64, ignore_eos=True)
    for key in range(1, batch + 1):
        prompt = tuple(1000 + (key * 31 + i) % 2000 for i in range(PROMPT))
        core.scheduler.submit(GenerationRequest(key, prompt, params))
    while core.scheduler.num_waiting or engine.core.scheduler.counters.steps < 8:
        core.step()
    scheduler, runner = core.scheduler, core.runner
    scheduler.schedule = watch.wrap("schedule", scheduler.schedule)
    runner.execute = watch.wrap("launch", runner.execute)
    scheduler.apply = watch.wrap("apply", scheduler.apply)
    streams = {key: Stream(1, interval=0.0) for key in range(1, batch + 1)}
    idle, began = runner.idle_seconds, time.perf_counter()
    for _ in range(steps):
        outputs = core.step()
        watch.wrap("hand over", lambda: [streams[o.key].push(o) for o in outputs])()  # noqa: B023
    elapsed = time.perf_counter() - began
    parts = {name: watch.median_us(name) for name in ("schedule", "launch", "apply", "hand over")}
    parts["step"] = elapsed / steps * 1e6
    parts["gap"] = (runner.idle_seconds - idle) / steps * 1e6
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--step-ms", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=None, help="write results as JSON")
    options = parser.parse_args()
    rows, table = [], []
    for batch in options.batches:
        runs = []
        for _ in range(3):
            config = EngineConfig(max_num_seqs=max(options.batches), max_model_len=8192)
            engine = FakeEngine(config, options.step_ms / 1e3)
            garbage.freeze()  # as the server does
            runs.append(measure(engine, batch, options.steps))
        for part in runs[0]:
            values = [run[part] for run in runs]
            rows.append(
                {
                    "workload": f"host-b{batch}",
                    "part": part,
                    "model": "fake",
                    "engine": "quire",
                    "value": statistics.median(values),
                    "unit": "us",
                    "floor": None,
                    "share_of_floor": None,
                    "runs": values,
                }
            )
        table.append([batch, *(f"{statistics.median(r[p] for r in runs):.0f}" for p in runs[0])])
    columns = ["batch", "schedule", "launch", "apply", "hand over", "step", "gap"]
    print_table(f"host time a step, us (fake step of {options.step_ms} ms)", columns, table)
    if options.out:
        write_results(options.out, rows, sys.argv)


if __name__ == "__main__":
    main()
