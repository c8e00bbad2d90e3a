"""Tokens a second through gRPC, over the same requests straight on the engine, in one run.

Both sides make text; max_num_seqs is the number of streams, which all begin at once. The engine
runs where `quire serve` would have it (on a thread of the server, or in a process of its own), the
clients in processes of their own. Straight runs and served runs alternate where the start is cheap
(fake device), each on a fresh server.

    python benchmarks/serving.py                                   # the works of record, no GPU
    python benchmarks/serving.py --step-ms 10 --streams 64 256
    python benchmarks/serving.py --device cuda --model-shape 0.6B --out results/serving-0.6B.json
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import print_table, result_row, write_results
from serving_work import Work

HERE = Path(__file__).parent
HEAD_START = 0.3  # seconds between the order to start and the start
REST = 5.0  # seconds without calls before the first run, for steps that a server captures meanwhile
RECORD = ((10.0, 64), (10.0, 256), (50.0, 1000), (2.0, 256), (5.0, 256))
OUTPUT = 512  # tokens of a stream on the fake device: about nano-256's mean
GPU_WORKS = (
    Work("nano-256", 256),
    Work("128/256", 256),
    Work("128/256", 64),
    Work("128/256", 1),
    Work("128/512", 1000, output=512),
    Work("128/16 in a row", 1, output=16, turns=100),
)


class Process:
    """A child that speaks JSON lines. Leaving its block ends it."""

    def __init__(self, script: str, *arguments: str, verbose: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if verbose else subprocess.DEVNULL,
            text=True,
        )

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended: {self._process.wait()}; --verbose")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True)
class Setup:
    """What is served, and by how many it is asked. step_ms None: a real device."""

    step_ms: float | None
    engine: dict[str, Any]
    clients: int
    verbose: bool
    engine_process: bool


@dataclass(frozen=True)
class Pair:
    """One straight run and one served run of a work."""

    straight: dict[str, float]
    served: dict[str, Any]

    @property
    def ratio(self) -> float:
        return float(self.straight["seconds"] / self.served["seconds"])


def pairs(setup: Setup, work: Work, runs: int, fresh: int) -> list[Pair]:
    """`runs` pairs from `fresh` servers, one after the other."""
    found: list[Pair] = []
    for turn in range(fresh):
        works = [replace(work, run=turn * 100 + i) for i in range(runs)]
        found += on_one_server(setup, works)
    return found


def on_one_server(setup: Setup, works: list[Work]) -> list[Pair]:
    """Straight, then served. The first work is run once more before, on each side, to warm up."""
    warm_up = replace(works[0], run=-1)
    if setup.step_ms is not None:
        warm_up = replace(warm_up, output=8)
    job = {
        "step_ms": setup.step_ms,
        "engine_process": setup.engine_process,
        "engine": setup.engine | {"max_num_seqs": works[0].streams},
        "straight": [w.plain() for w in (warm_up, *works)],
    }
    with ExitStack() as stack:
        server = stack.enter_context(
            Process("serving_server.py", json.dumps(job), verbose=setup.verbose)
        )
        said = server.hear()
        count = min(setup.clients, works[0].streams)
        address = f"127.0.0.1:{said['port']}"
        clients = [
            stack.enter_context(Process("serving_client.py", address, verbose=setup.verbose))
            for _ in range(count)
        ]
        serve(server, clients, warm_up)
        if setup.step_ms is None:
            time.sleep(REST)
        served = [serve(server, clients, w) for w in works]
    return [Pair(s, g) for s, g in zip(said["straight"][1:], served, strict=True)]


def serve(server: Process, clients: list[Process], work: Work) -> dict[str, Any]:
    """One served run: all clients begin at one moment."""
    for share, client in enumerate(clients):
        client.say(json.dumps({"work": work.plain(), "share": share, "of": len(clients)}))
    for client in clients:
        client.hear()
    server.say("mark")
    server.hear()
    start = time.monotonic() + HEAD_START
    for client in clients:
        client.say(json.dumps({"start": start}))
    heard = [client.hear() for client in clients]
    server.say("report")
    return summary(start, heard, server.hear(), at_once=work.turns == 1)


def summary(
    start: float, heard: list[dict[str, Any]], counted: dict[str, Any], *, at_once: bool
) -> dict[str, Any]:
    """Rates, latencies and CPU of one served run. at_once: all calls began then."""
    calls = [c for h in heard for c in h["calls"]]
    seconds = max(c["ended"] for c in calls) - start
    tokens = sum(c["tokens"] for c in calls)
    messages = sum(len(c["times"]) for c in calls)
    first = sorted(c["times"][0] - (start if at_once else c["began"]) for c in calls)
    gaps = sorted(b - a for c in calls for a, b in pairwise(c["times"])) or [0.0]
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "ms_per_token": 1e3
        * statistics.median(
            (c["times"][-1] - c["times"][0]) / max(c["tokens"] - 1, 1) for c in calls
        ),
        "ttft_p50": first[len(first) // 2],
        "ttft_p99": first[int(len(first) * 0.99)],
        "gap_p50": gaps[len(gaps) // 2],
        "gap_p99": gaps[int(len(gaps) * 0.99)],
        "messages_per_second": (messages + 2 * len(calls)) / seconds,
        "tokens_per_message": tokens / messages,
        "steps": counted["steps"],
        "step_seconds": counted["step_seconds"],
        "server_cpu": counted["cpu"],
        "client_cpu": [h["cpu"] for h in heard],
    }


# ---------------------------------------------------------------- tables and files


def show(name: str, found: list[Pair]) -> list[object]:
    """One line of the table: medians."""

    def middle(key: str) -> float:
        return statistics.median(p.served[key] for p in found)

    cpu = statistics.median(p.served["server_cpu"].get("event loop", 0.0) for p in found)
    engine = statistics.median(p.served["server_cpu"].get("quire-engine", 0.0) for p in found)
    client = statistics.median(sum(sum(c.values()) for c in p.served["client_cpu"]) for p in found)
    return [
        name,
        statistics.median(p.straight["tokens"] / p.straight["seconds"] for p in found),
        middle("tokens_per_second"),
        statistics.median(p.ratio for p in found),
        middle("messages_per_second"),
        middle("tokens_per_message"),
        1e3 * middle("ttft_p50"),
        middle("ms_per_token"),
        1e3 * middle("gap_p99"),
        cpu,
        engine,
        client,
    ]


COLUMNS = (
    "work", "straight tok/s", "served tok/s", "ratio", "msg/s", "tok/msg", "ttft p50 ms",
    "ms/token", "gap p99 ms", "loop cpu", "engine cpu", "clients cpu",
)  # fmt: skip


def rows(name: str, model: str, found: list[Pair]) -> list[dict[str, Any]]:
    """Rows of record: the ratio with everything seen, then the figures of the `served` table."""
    details = [{"straight": p.straight, "served": p.served} for p in found]
    served = [p.served for p in found]
    return [
        result_row(
            name, model, "quire", [p.ratio for p in found], "served/straight", pairs=details
        ),
        result_row(name, model, "quire", [s["tokens_per_second"] for s in served], "tokens/s"),
        result_row(
            name, model, "quire", [1e3 * s["ttft_p50"] for s in served], "ms to first token"
        ),
        result_row(name, model, "quire", [s["ms_per_token"] for s in served], "ms a token"),
    ]


def fake_works(options: argparse.Namespace) -> list[tuple[float, Work]]:
    """The works of record, or those asked for."""
    wanted = RECORD
    if options.step_ms is not None:
        wanted = tuple((options.step_ms, n) for n in options.streams)
    works = []
    for step_ms, streams in wanted:
        name = f"{streams} streams, {step_ms:g} ms"
        works.append((step_ms, Work(name, streams, output=options.output)))
    return works


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("fake", "cuda"), default="fake")
    parser.add_argument("--model-shape", default="0.6B", help="with --device cuda")
    parser.add_argument("--step-ms", type=float, help="of the fake device")
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--output", type=int, default=OUTPUT, help="tokens a stream, fake device")
    parser.add_argument("--only", nargs="+", help="with --device cuda: works by number, from 0")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--clients", type=int, help="processes; default 1, with cuda 4")
    parser.add_argument(
        "--engine-process", choices=("auto", "on", "off"), default="auto", help="auto: with cuda"
    )
    parser.add_argument("--verbose", action="store_true", help="show what the processes log")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    apart = options.engine_process == "on"
    if options.engine_process == "auto":
        apart = options.device == "cuda"
    records: list[dict[str, Any]] = []
    table: list[list[object]] = []

    def note(name: str, model: str, found: list[Pair]) -> None:
        records.extend(rows(name, model, found))
        table.append(show(name, found))
        print_table("served over gRPC and straight on the engine", COLUMNS, table[-1:])
        if options.out:
            write_results(options.out, records)

    if options.device == "fake":
        for step_ms, work in fake_works(options):
            engine = {"num_blocks": work.streams * 64, "max_num_batched_tokens": 16_384}
            setup = Setup(step_ms, engine, options.clients or 1, options.verbose, apart)
            note(work.name, "fake", pairs(setup, work, 1, options.runs))
    else:
        engine = {
            "model": f"random:{options.model_shape}",
            "device": "cuda",
            "max_num_batched_tokens": 16_384,
        }
        setup = Setup(None, engine, options.clients or 4, options.verbose, apart)
        chosen = [int(i) for i in options.only] if options.only else range(len(GPU_WORKS))
        for work in (GPU_WORKS[i] for i in chosen):
            name = work.name if work.name == "nano-256" else f"{work.streams} x {work.name}"
            note(name, options.model_shape, pairs(setup, work, options.runs, 1))
    print_table("all", COLUMNS, table)


if __name__ == "__main__":
    main()
