"""What it costs to tell a watcher of the cached blocks, and what it costs while nobody watches.

Two engines' own loops over a device that takes no time, with the same work, step beside step: one
is watched, the other is not, then the other way round. They are always full: requests of 128 tokens
that are answered with 48, each followed by another, in a cache that has to forget for them, so
there are blocks to tell of, and blocks that go. Times are the thread's own.

    python benchmarks/kv_events.py [--batches 1 64 256] [--out benchmarks/results/kv-events.json]

Rows, in microseconds a step: the unwatched engine's thread; what the watched one's takes more
(medians of the stretches, and quartiles); what the event loop then takes to pass the events on
and to pack them as the gateway's messages. Shares are of a step of --step-ms, and of the engine's
own time. `unwatched_us` is the loop's question whether somebody watches, asked alone.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import common
from fake_device import FakeEngine

from quire.engine.client.kv_hub import KvHub
from quire.engine.config import EngineConfig
from quire.engine.loop import garbage
from quire.engine.loop.kv_watch import KvWatch
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.scheduling.kv_events import SNAPSHOT, KvEvents
from quire.service.gateway.kv_stream import KvStream
from quire.service.gateway.protos import Protos

PROMPT, ANSWER = 128, 48
CACHE = 2  # times what the running requests need
STEPS = 64  # of a stretch


class Bench:
    """A full engine, as its loop drives it."""

    def __init__(self, batch: int, block_size: int) -> None:
        config = EngineConfig(max_num_seqs=batch, max_model_len=1024, block_size=block_size)
        blocks = CACHE * batch * ((PROMPT + ANSWER) // block_size + 1)
        config = config.replace(num_blocks=max(blocks, 1024 // block_size))
        self.core = FakeEngine(config, 0.0).core
        self.block_size = block_size
        self.watch = KvWatch(self.core.scheduler.pool.prefix_cache)
        self.told: list[KvEvents] = []
        self._batch, self._key = batch, 0

    def _fill(self) -> None:
        """As many requests as there is room for."""
        open_now = self.core.scheduler.num_running + self.core.scheduler.num_waiting
        for _ in range(self._batch - open_now):
            self._key += 1
            prompt = tuple(1000 + (self._key * 7919 + i * 31) % 100_003 for i in range(PROMPT))
            params = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
            self.core.scheduler.submit(GenerationRequest(self._key, prompt, params))

    def step(self) -> float:
        """Seconds of the engine's thread."""
        self._fill()
        began = time.thread_time()
        self.core.step()
        told = self.watch.take()
        seconds = time.thread_time() - began
        self.told += told
        return seconds


def stretch(watched: Bench, alone: Bench) -> tuple[float, float]:
    """Seconds a step of each, of the same steps."""
    seconds = {id(watched): 0.0, id(alone): 0.0}
    for number in range(STEPS):
        for bench in (watched, alone) if number % 2 else (alone, watched):
            seconds[id(bench)] += bench.step()
    return seconds[id(watched)] / STEPS, seconds[id(alone)] / STEPS


async def pass_on(
    told: list[KvEvents], hub: KvHub, watching: AsyncGenerator[KvEvents, None], stream: KvStream
) -> float:
    """Seconds of the event loop: to the subscriber, and into the gateway's messages."""
    began = time.thread_time()
    for batch in told:
        hub.deliver([batch])
        taken = await anext(watching)
        assert taken is batch
        for message in stream.told(taken):
            message.SerializeToString()
    return time.thread_time() - began


async def watched_runs(
    watched: Bench, alone: Bench, stretches: int
) -> tuple[list[float], list[float], list[float], int]:
    """Of each stretch, seconds a step: more than alone, alone, of the event loop; and events."""
    hub = KvHub(watched.watch.begin, watched.watch.end)
    watching, stream = hub.watch(), KvStream(Protos(), watched.block_size, b"")
    first = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0)  # it has asked, and the engine begins
    hub.deliver(watched.watch.take())
    assert (await first).kind == SNAPSHOT
    more, engine, passed, events = [], [], [], 0
    for _ in range(stretches):
        both, one = stretch(watched, alone)
        more.append(both - one)
        engine.append(one)
        told, watched.told = watched.told, []
        passed.append(await pass_on(told, hub, watching, stream) / STEPS)
        events += sum(len(batch.events) for batch in told)
    assert not alone.told
    await watching.aclose()
    return more, engine, passed, events


async def measure(batch: int, block_size: int, stretches: int, step_ms: float) -> dict[str, Any]:
    """One row. Each engine is watched for half of the stretches: one may lie better in memory."""
    benches = [Bench(batch, block_size), Bench(batch, block_size)]
    garbage.freeze()  # as the server does
    for _ in range(4):
        stretch(*benches)
    halves = [await watched_runs(*pair, stretches) for pair in (benches, benches[::-1])]
    quarters = [statistics.quantiles([1e6 * one for one in half[0]], n=4) for half in halves]
    low, more, high = (round(statistics.mean(pair), 2) for pair in zip(*quarters, strict=True))
    engine = 1e6 * statistics.median(halves[0][1] + halves[1][1])
    loop = 1e6 * statistics.median(halves[0][2] + halves[1][2])
    return {
        "workload": f"kv-events-b{batch}-blocks-of-{block_size}",
        "batch": batch,
        "block_size": block_size,
        "value": more,
        "unit": "us",
        "quartiles": [low, high],
        "event_loop_us": round(loop, 2),
        "engine_us": round(engine, 2),
        "events_a_step": round((halves[0][3] + halves[1][3]) / (2 * stretches * STEPS), 2),
        "step_ms": step_ms,
        "share_of_step": round(more / step_ms / 1e3, 5),
        "share_of_step_with_event_loop": round((more + loop) / step_ms / 1e3, 5),
        "share_of_engine": round(more / engine, 4),
        "unwatched_us": _question(benches[0].watch),
    }


def _question(watch: KvWatch) -> float:
    """Microseconds of asking once whether somebody watches, where nobody does."""
    rounds = 100_000
    began = time.thread_time()
    for _ in range(rounds):
        watch.take()
    return round(1e6 * (time.thread_time() - began) / rounds, 3)


SHOWN = ("batch", "block_size", "events_a_step", "engine_us", "value", "event_loop_us",
         "share_of_step", "share_of_step_with_event_loop", "unwatched_us")  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[EngineConfig().block_size])
    parser.add_argument("--stretches", type=int, default=60)
    parser.add_argument("--step-ms", type=float, default=10.0, help="what shares are taken of")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if min(options.batches) < 1 or options.stretches < 2 or options.step_ms <= 0:
        parser.error("--batches: at least 1 each; --stretches: at least 2; --step-ms: above 0")
    rows = [
        asyncio.run(measure(batch, size, options.stretches, options.step_ms))
        for size in options.block_sizes
        for batch in options.batches
    ]
    cells = [[row[name] for name in SHOWN] for row in rows]
    common.print_table("what telling of the cached blocks costs a step", SHOWN, cells)
    if options.out:
        common.write_results(options.out, rows)


if __name__ == "__main__":
    main()
