"""What a server under too much load does for those it lets in.

A fake device of 20 ms a step, the whole server above it, and open-loop clients in a process of
their own. The capacity is measured first (a closed loop as wide as the engine), then arrivals come
at shares of it. All ratios are of one run:

    goodput     at 3 times the capacity, of the best of all rates: at least 0.9
    TTFT        p90 of those let in at 3 times, over that at 0.8: at most 1.5
    refusals    their median time at 3 times, over that of Stats calls beside them: at most 3

    python benchmarks/overload.py [--seconds 15] [--out benchmarks/results/overload.json]
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from quire.clients.loadtest import arrivals, drive, workload
from quire.clients.loadtest.drive import Load, Outcome, Target
from quire.clients.loadtest.record import Record
from quire.clients.loadtest.statistics import percentile
from quire.clients.loadtest.summary import parse_limits, summarize
from quire.clients.loadtest.workload import Lengths, Session, Span

STEP_SECONDS = 0.02
SLOTS = 32
LENGTHS = Lengths(prompt=Span(16, 64), output=Span(32, 96))
LIMITS = ("ttft:500", "tpot:50")  # milliseconds: what counts as good
SHARES = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
PROBE_SECONDS = 0.05
VOCABULARY = 4096
SEED = 7


# ------------------------------------------------------------ the server's process


async def serve(options: dict[str, Any]) -> None:
    """Serve until standard input ends; says the port."""
    from fake_device import FakeBuilder

    from quire.engine.client.async_engine import AsyncEngine
    from quire.engine.client.in_thread import ThreadLink
    from quire.engine.config import EngineConfig
    from quire.service.app.server import Server
    from quire.service.models import pocket
    from quire.service.models.resolve import ResolvedModel
    from quire.service.settings import ServiceConfig, Settings

    config = EngineConfig(
        max_num_seqs=SLOTS, max_num_batched_tokens=2048, max_model_len=1024, num_blocks=4096
    )
    settings = Settings(config, ServiceConfig(port=0, **options))
    engine = AsyncEngine(ThreadLink(config, FakeBuilder(STEP_SECONDS)))
    server = Server(settings, ResolvedModel("fake", "fake", pocket.directory()), engine)
    await server.open(1024)
    await server.load(VOCABULARY)
    print(server.port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()


# ------------------------------------------------------------ the prober's process


async def probe(address: str) -> None:
    """Call Stats at a steady pace until standard input ends; says how long each call took."""
    import grpc.aio

    from quire.v1 import inference_pb2 as pb
    from quire.v1 import inference_pb2_grpc as pb_grpc

    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    seconds = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = pb_grpc.InferenceServiceStub(channel)
        await stub.Stats(pb.StatsRequest())
        while not ended.done():
            began = time.monotonic()
            await stub.Stats(pb.StatsRequest())
            seconds.append(time.monotonic() - began)
            await asyncio.wait({ended}, timeout=PROBE_SECONDS)
    print(json.dumps(seconds), flush=True)


@contextmanager
def child(*words: str) -> Iterator["subprocess.Popen[str]"]:
    """This file in another role; ended by the end of its input."""
    process = subprocess.Popen(
        [sys.executable, __file__, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()  # type: ignore[union-attr]
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# ------------------------------------------------------------ the runs


def capacity(target: Target) -> float:
    """Requests a second that a full engine completes."""
    sessions = list(workload.random_prompts(6 * SLOTS, LENGTHS, 0.0, SEED))
    outcome = drive.run(target, Load(sessions, None, SLOTS, warmup=SLOTS, seed=SEED))
    # The last of a closed loop run beside empty slots: count while it was full.
    ends = sorted(r.ended for r in outcome.records if r.completed)[SLOTS : -SLOTS or None]
    return (len(ends) - 1) / (ends[-1] - ends[0])


def at_rate(target: Target, rate: float, settle: float, seconds: float) -> tuple[Outcome, float]:
    """Poisson arrivals; those of the first `settle` seconds are warm-up. Also the median seconds of
    a Stats call beside them."""
    count = int(rate * (settle + seconds))
    sessions: list[Session] = list(workload.random_prompts(count, LENGTHS, 0.0, SEED))
    starts = arrivals.intended_starts("poisson", rate, 1.0, count, SEED)
    load = Load(sessions, starts, None, warmup=int(rate * settle), seed=SEED)
    with child("--probe", target.address[0]) as prober:
        outcome = drive.run(target, load)
        answers = prober.communicate()[0]
    return outcome, statistics.median(json.loads(answers))


def figures(share: float, rate: float, outcome: Outcome, stats_seconds: float) -> dict[str, Any]:
    """One row."""
    summary = summarize(outcome, parse_limits(LIMITS), detailed=False)
    measured = [r for r in outcome.records if not r.warmup]
    refused = [r for r in measured if r.status == "RESOURCE_EXHAUSTED"]
    window = max(r.intended for r in measured) - min(r.intended for r in measured)
    good = summary["request_goodput"] * summary["duration"]
    return {
        "share": share,
        "rate": rate,
        "requests": len(measured),
        "completed": summary["completed"],
        "refused": len(refused),
        "other_failures": summary["failed"] - len(refused),
        "goodput": good / window,
        "output_tokens_per_s": summary["total_output_tokens"] / window,
        "ttft_p50_ms": summary["median_ttft_ms"],
        "ttft_p90_ms": summary["p90_ttft_ms"],
        "ttft_p99_ms": summary["p99_ttft_ms"],
        "itl_p50_ms": summary["median_itl_ms"],
        "refusal_p50_ms": 1e3 * _median([_taken(r) for r in refused]),
        "stats_p50_ms": 1e3 * stats_seconds,
        "client_is_the_limit": summary["client_is_the_limit"],
        "client_limits": summary["client_limits"],
    }


def _taken(record: Record) -> float:
    return record.ended - record.sent


def _median(values: list[float]) -> float:
    return percentile(sorted(values), 50) if values else 0.0


def verdict(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The three ratios and their bounds."""
    by_share = {row["share"]: row for row in rows}
    full, calm = by_share[3.0], by_share[0.8]
    goodput = full["goodput"] / max(row["goodput"] for row in rows)
    ttft = full["ttft_p90_ms"] / calm["ttft_p90_ms"]
    refusal = full["refusal_p50_ms"] / full["stats_p50_ms"]
    return {
        "goodput_of_peak": {"value": goodput, "bound": 0.9, "holds": goodput >= 0.9},
        "ttft_p90_over_calm": {"value": ttft, "bound": 1.5, "holds": ttft <= 1.5},
        "refusal_over_stats": {"value": refusal, "bound": 3.0, "holds": refusal <= 3.0},
    }


def show(row: dict[str, Any]) -> None:
    """A line of the table."""
    print(
        f"{row['share']:>5} {row['rate']:8.1f} {row['completed']:>9} {row['refused']:>8}"
        f" {row['goodput']:8.1f} {row['ttft_p50_ms']:9.1f} {row['ttft_p90_ms']:9.1f}"
        f" {row['itl_p50_ms']:8.1f} {row['refusal_p50_ms']:11.2f} {row['stats_p50_ms']:9.2f}",
        flush=True,
    )


def measure(arguments: argparse.Namespace) -> int:
    """Run all rates; 0 if every bound holds."""
    import common

    options = json.loads(arguments.options)
    with child("--serve", json.dumps(options)) as server:
        port = server.stdout.readline().strip()  # type: ignore[union-attr]
        target = Target([f"127.0.0.1:{port}"], vocab_size=VOCABULARY)
        most = capacity(target)
        print(f"capacity {most:.1f} requests/s, {SLOTS} slots, {STEP_SECONDS * 1e3:g} ms a step")
        print(
            "share   rate/s completed  refused  goodput  TTFT p50  TTFT p90  ITL p50"
            " refusal p50 Stats p50"
        )
        rows = []
        for share in SHARES:
            outcome, stats_seconds = at_rate(
                target, share * most, arguments.settle, arguments.seconds
            )
            rows.append(figures(share, share * most, outcome, stats_seconds))
            show(rows[-1])
    bounds = verdict(rows)
    for name, bound in bounds.items():
        state = "holds" if bound["holds"] else "FAILS"
        print(f"{name:20} {bound['value']:.3f} (bound {bound['bound']}): {state}")
    if arguments.out is not None:
        found = [
            common.result_row(
                f"overload: {name}", "fake", "quire", [bound["value"]], "ratio", **bound
            )
            for name, bound in bounds.items()
        ]
        about = {"step_seconds": STEP_SECONDS, "slots": SLOTS, "capacity": most, "options": options}
        common.write_results(arguments.out, found, about=about, rates=rows)
    return 0 if all(bound["holds"] for bound in bounds.values()) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="measured, of each rate")
    parser.add_argument("--settle", type=float, default=20.0, help="before them, of each rate")
    parser.add_argument("--options", default="{}", help="the server's options as JSON")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        asyncio.run(serve(json.loads(arguments.serve)))
        return 0
    if arguments.probe is not None:
        asyncio.run(probe(arguments.probe))
        return 0
    return measure(arguments)


if __name__ == "__main__":
    sys.exit(main())
