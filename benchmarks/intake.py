"""What it costs the server to take in calls that arrive at once, on a device that only takes time.

A client process of its own fires bursts of calls; the server's process has a core to itself, its
engine's process and the client share the others. For each burst:
    loop      CPU time of the event loop's thread until the last call was submitted, ms a call
    process   CPU time of all of the server's threads until then, ms a call
    whole     CPU time of the loop's thread until all streams had ended, ms a call
    submitted ms from the burst's start until the last call was submitted
    first, last   ms from its start to the median stream's first token, and to the last one's

    python benchmarks/intake.py                                  # 30 bursts of 64 calls
    python benchmarks/intake.py --against OTHER/bin/python       # pairs, in turn, with another tree
    python benchmarks/intake.py --profile                        # where the loop's time goes
"""

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent))

from common import print_table, write_results
from fake_device import VOCAB_SIZE, FakeBuilder
from serving_vocabulary import save_tokenizer
from serving_work import Work

from quire.engine.client import process_main
from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.child import Child
from quire.engine.client.in_process import ProcessLink
from quire.engine.config import EngineConfig
from quire.engine.loop import garbage
from quire.engine.loop.commands import Command, Submit
from quire.service.app.event_loop import new_event_loop
from quire.service.app.process import _SWITCH_SECONDS
from quire.service.app.server import Server
from quire.service.models.resolve import ResolvedModel
from quire.service.settings import ServiceConfig, Settings
from quire.service.telemetry import logs

MAX_MODEL_LEN = 4096
PARTS = ("loop", "process", "whole", "submitted", "first", "last")


class Submissions:
    """When calls are handed to the engine, and what had been used by then."""

    def __init__(self, link: ProcessLink) -> None:
        self._send = link.send
        link.send = self._submitted  # type: ignore[method-assign]
        self.mark()

    def mark(self) -> None:
        """A burst is to come."""
        self._began = time.thread_time(), time.process_time()
        self._last = (*self._began, time.monotonic())
        self._count = 0

    def _submitted(self, command: Command) -> None:
        self._send(command)
        if isinstance(command, Submit):
            self._count += 1
            self._last = time.thread_time(), time.process_time(), time.monotonic()

    def report(self) -> dict[str, float]:
        """Of the burst since the mark; CPU times in seconds, `at` by time.monotonic."""
        loop, process, at = self._last
        return {
            "calls": self._count,
            "loop": loop - self._began[0],
            "process": process - self._began[1],
            "whole": time.thread_time() - self._began[0],
            "at": at,
        }


async def serve(job: dict[str, Any], scratch: Path, stack: ExitStack) -> None:
    """Speaks JSON lines: says its port, then to `mark` and `report` what they ask for."""
    config = EngineConfig(max_model_len=MAX_MODEL_LEN, max_num_seqs=256)
    save_tokenizer(scratch, VOCAB_SIZE)
    child = Child([sys.executable, __file__, "--child", json.dumps(job)])
    stack.callback(child.end)
    link = ProcessLink(config, child)
    engine = AsyncEngine(link)
    service = ServiceConfig(port=0, reflection=False, max_waiting=1 << 20)
    resolved = ResolvedModel("benchmark", config.model, scratch)
    server = Server(Settings(config, service), resolved, engine)
    await server.open(MAX_MODEL_LEN)
    await server.load(VOCAB_SIZE)
    garbage.freeze()  # as `quire serve` does
    submissions, profile = Submissions(link), cProfile.Profile()
    say({"port": server.port})
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line.strip() == "mark":
            submissions.mark()
            say({})
            if job["profile"]:
                profile.enable()
        else:
            profile.disable()
            say(submissions.report())
    if job["profile"]:
        pstats.Stats(profile, stream=sys.__stderr__).sort_stats("tottime").print_stats(60)
    await server.stop()


def be_the_child(job: dict[str, Any], connection: int, mark: int) -> NoReturn:
    """The engine's process."""
    threading.current_thread().name = "quire-engine"
    os.sched_setaffinity(0, job["others"])
    process_main.run(lambda: FakeBuilder(job["step_ms"] / 1e3), connection, mark)


def be_the_server(job: dict[str, Any]) -> None:
    """The server's process, on a core of its own."""
    logs.set_up("text", "info")  # as it runs in production; what it says is dropped
    sys.setswitchinterval(_SWITCH_SECONDS)
    os.sched_setaffinity(0, [job["core"]])
    with (
        tempfile.TemporaryDirectory() as scratch,
        ExitStack() as stack,
        asyncio.Runner(loop_factory=new_event_loop) as runner,
    ):
        runner.run(serve(job, Path(scratch), stack))


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


class Side:
    """A server of one tree, and its client."""

    def __init__(self, python: str, job: dict[str, Any], stack: ExitStack) -> None:
        self._server = _start([python, __file__, "--server", json.dumps(job)], stack, job)
        port = self._told(self._server)["port"]
        client = str(Path(__file__).with_name("serving_client.py"))
        self._client = _start([sys.executable, client, f"127.0.0.1:{port}"], stack, None)
        os.sched_setaffinity(self._client.pid, job["others"])
        self._run = 0

    def burst(self, streams: int, output: int) -> dict[str, float]:
        """One burst's parts, in ms."""
        self._run += 1
        work = Work("burst", streams, output=output, run=self._run)
        self._told(self._client, json.dumps({"work": work.plain(), "share": 0, "of": 1}))
        self._told(self._server, "mark")
        start = time.monotonic() + 0.05
        streamed = self._told(self._client, json.dumps({"start": start}))["calls"]
        used = self._told(self._server, "report")
        if used["calls"] != streams:
            raise RuntimeError(f"{used['calls']} calls were submitted, {streams} were made")
        firsts = sorted(stream["times"][0] - start for stream in streamed)
        return {
            "loop": used["loop"] / streams * 1e3,
            "process": used["process"] / streams * 1e3,
            "whole": used["whole"] / streams * 1e3,
            "submitted": (used["at"] - start) * 1e3,
            "first": firsts[len(firsts) // 2] * 1e3,
            "last": firsts[-1] * 1e3,
        }

    @staticmethod
    def _told(process: "subprocess.Popen[str]", line: str | None = None) -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        if line is not None:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer


def _start(
    command: list[str], stack: ExitStack, job: dict[str, Any] | None
) -> "subprocess.Popen[str]":
    quiet = subprocess.DEVNULL if job is not None and not job["profile"] else None
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True
    )
    assert process.stdin is not None
    stack.callback(process.wait)
    stack.callback(process.stdin.close)
    return process


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Bursts of each tree, in turn; the first of each warms up and is left out."""
    cores = sorted(os.sched_getaffinity(0))
    job = {
        "step_ms": options.step_ms,
        "core": cores[0],
        "others": cores[1:] or cores,
        "profile": options.profile,
    }
    pythons = {"new": sys.executable}
    if options.against:
        pythons = {"old": options.against, **pythons}
    with ExitStack() as stack:
        sides = {name: Side(python, job, stack) for name, python in pythons.items()}
        bursts: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for i in range(options.bursts + 1):
            for name, side in sides.items():
                got = side.burst(options.streams, options.output)
                if i:
                    bursts[name].append(got)
    return bursts


def report(bursts: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    table, rows = [], []
    for name, runs in bursts.items():
        cells = [name]
        for part in PARTS:
            values = [run[part] for run in runs]
            low, *_, high = statistics.quantiles(values, n=10) if len(values) > 1 else values * 2
            cells.append(f"{statistics.median(values):.3g} ({low:.3g} to {high:.3g})")
            rows.append(
                {
                    "workload": f"intake-{options.streams}",
                    "part": part,
                    "model": "fake",
                    "engine": f"quire {name}",
                    "value": statistics.median(values),
                    "unit": "ms a call" if part in ("loop", "process", "whole") else "ms",
                    "floor": None,
                    "share_of_floor": None,
                    "runs": values,
                }
            )
        table.append(cells)
    title = f"{options.streams} calls at once, {options.bursts} bursts: medians (and tenths), ms"
    print_table(title, ["tree", *PARTS], table)
    if options.out:
        write_results(options.out, rows, sys.argv)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--output", type=int, default=8, help="tokens of each stream")
    parser.add_argument("--bursts", type=int, default=30)
    parser.add_argument("--step-ms", type=float, default=2.0)
    parser.add_argument("--against", help="another tree's interpreter: pairs, in turn")
    parser.add_argument("--profile", action="store_true", help="the loop's functions by their time")
    parser.add_argument("--out", type=Path, default=None, help="write results as JSON")
    options = parser.parse_args()
    report(measure(options), options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--server"]:
        be_the_server(json.loads(sys.argv[2]))
    elif sys.argv[1:2] == ["--child"]:
        be_the_child(json.loads(sys.argv[2]), *map(int, sys.argv[3:]))
    else:
        main()
