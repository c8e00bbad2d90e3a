"""One decode step, kernel by kernel, against the bytes it must move.

Replays the captured step of a real engine with random weights under torch's profiler, and reads the
gap between steps from the device's own time line.

    python benchmarks/profile_step.py --model-shape 0.6B --batches 1 256
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import itertools

from common import print_table, result_row, write_results
from engines import QuireEngine
from floors import Floors
from offline import options_of, prompts

from quire.engine.model.config import ModelConfig

STEPS = 20
ATTENTION = "_decode_kernel"  # of each layer, the one kernel that runs once


def kernels_of(engine: QuireEngine, batch: int, context: int) -> tuple[list[Any], float]:
    """Device events of STEPS decode steps in order, and the wall time of a step in us."""
    import time

    import torch
    from torch.profiler import ProfilerActivity, profile

    from quire.engine.request import GenerationRequest, SamplingParams

    core = engine.engine.core
    params = SamplingParams(max_tokens=512, ignore_eos=True)
    for key, prompt in enumerate(prompts(batch, context, seed=batch), 1_000_000):
        core.scheduler.submit(GenerationRequest(key, tuple(prompt), params))
    while core.scheduler.num_waiting:
        core.step()
    for _ in range(16):
        core.step()
    begin = time.perf_counter()
    for _ in range(100):
        core.step()
    wall = (time.perf_counter() - begin) / 100 * 1e6
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(STEPS):
            core.step()
        torch.cuda.synchronize()
    for key in range(1_000_000, 1_000_000 + batch):
        core.scheduler.abort(key)
    while core.scheduler.has_requests:
        core.step()
    events = [e for e in recorded.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return sorted(events, key=lambda e: e.time_range.start), wall


def places(names: list[str]) -> list[str]:
    """Each kernel's name and its place: how many kernels after the layer's attention it runs.

    So the products of a layer, which share a kernel, are told apart: `+1` is the output product's.
    What follows the last layer of a step, up to the next step's first attention, has no place.
    """
    starts = [i for i, name in enumerate(names) if name.startswith(ATTENTION)]
    layer = statistics.mode(b - a for a, b in itertools.pairwise(starts)) if len(starts) > 1 else 0
    labels = [name[:60] for name in names]
    for start, end in itertools.pairwise(starts):
        if end - start == layer:
            for i in range(start, end):
                labels[i] = f"{names[i][:52]} +{i - start}"
    return labels


def table_of(events: Sequence[Any]) -> list[tuple[str, float, float, float]]:
    """Of each kernel, the longest first: its launches a step, the median time of one, us a step."""
    spans: dict[str, list[float]] = defaultdict(list)
    for name, event in zip(places([e.name for e in events]), events, strict=True):
        spans[name].append(event.time_range.elapsed_us())
    return [
        (name, len(times) / STEPS, statistics.median(times), sum(times) / STEPS)
        for name, times in sorted(spans.items(), key=lambda item: -sum(item[1]))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-shape", default="0.6B")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--option", nargs="*", default=[], help="engine options, name=value")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    floors = Floors.of(ModelConfig.named_shape(options.model_shape))
    engine = QuireEngine(f"random:{options.model_shape}", **options_of(options.option))
    rows = []
    for batch in options.batches:
        work = f"decode-b{batch}", options.model_shape, "quire"
        events, wall = kernels_of(engine, batch, options.context)
        table = table_of(events)
        rows += [
            result_row(*work, [total], "us", kernel=name, launches=launches)
            for name, launches, _, total in table
        ]
        gaps = [
            later.time_range.start - earlier.time_range.end
            for earlier, later in itertools.pairwise(events)
        ]
        floor = floors.decode(batch, options.context) * 1e6
        title = (
            f"batch {batch}, context {options.context}: {wall:.0f} us a step, "
            f"{sum(total for *_, total in table):.0f} busy, "
            f"{sum(gap for gap in gaps if gap > 0) / STEPS:.0f} between kernels, floor {floor:.0f}"
        )
        print_table(title, ["kernel", "launches", "median us", "us a step"], table)
        sys.stdout.flush()
        rows.append(result_row(*work, [wall], "us", floor))
    if options.out:
        write_results(options.out, rows)


if __name__ == "__main__":
    main()
