"""Rounds of everything that means no good, against a server with both APIs.

One stream runs through over gRPC. In each round every load is
sent for some seconds by a process of its own: requests (tools/hostility/bodies.py) over HTTP and
over gRPC in turn, and connections (tools/hostility/sockets.py). Told of each: how it was answered;
whether both APIs refused with the same words; the stream's longest gap beside it, over the longest
with nothing beside it in the same run; and of each round the server's memory, threads and files.

    python tools/hostile.py [--minutes 10]          # over a fake device of 10 ms
    python tools/hostile.py --step-ms 0             # `quire serve pocket`

Exits non-zero if a refusal is no 4xx or differs between the APIs, if the server ends, if memory,
threads or files grow over the last half or, over a fake device, if a gap is more than twice the
usual.
"""

import argparse
import asyncio
import http.client
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [p for p in sys.path if p and Path(p).resolve() != ROOT]
sys.path += [str(ROOT / "tools"), str(ROOT / "benchmarks")]

import grpc  # noqa: E402
from common import print_table, write_results  # noqa: E402
from google.rpc import error_details_pb2, status_pb2  # noqa: E402
from hostility.bodies import LOADS, Load, asked  # noqa: E402
from hostility.server import PATIENCE, Ports, held, served  # noqa: E402
from hostility.sockets import ATTACKS  # noqa: E402

from quire.v1 import inference_pb2_grpc as pb_grpc  # noqa: E402

MAX_GAP = 2.0  # times the usual
MAX_GROWTH = 0.02  # of memory, over the last half
NOTHING = "nothing"
Ends = Counter[str]


# ------------------------------------------------------------ the senders' process


def over_http(port: int, load: Load, turn: int) -> tuple[str, str]:
    """Status and words of one request."""
    body = load.body(turn)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(
            "POST", "/v1/chat/completions", data, {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        told = json.loads(answer.read())
    finally:
        connection.close()
    return str(answer.status), told.get("error", {}).get("message", "")


def over_grpc(stub: Any, load: Load, turn: int) -> tuple[str, str]:
    """Status and words of the same call."""
    assert load.message is not None
    call = stub.Generate(load.message(turn), timeout=PATIENCE)
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        return error.code().name, "; ".join(violations(error)) or error.details()
    return "OK", ""


def violations(error: Any) -> Iterator[str]:
    """Each field at fault with its words."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                bad = error_details_pb2.BadRequest()
                if detail.Unpack(bad):
                    yield from (f"{one.field}: {one.description}" for one in bad.field_violations)


def requests(ports: Ports, load: Load, seconds: float) -> dict[str, Any]:
    """Send a load over both APIs in turn."""
    ends: Ends = Counter()
    words: dict[str, str] = {}
    until, turn = time.monotonic() + seconds, int(time.time() * 1000) % 1_000_000
    slowest = 0.0
    with grpc.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        while time.monotonic() < until:
            turn += 1
            for face in ("http", "grpc"):
                if face == "grpc" and load.message is None:
                    continue
                began = time.monotonic()
                if face == "http":
                    end, told = over_http(ports.http, load, turn)
                else:
                    end, told = over_grpc(stub, load, turn)
                slowest = max(slowest, time.monotonic() - began)
                ends[end] += 1
                words[face] = told
    return {"ends": ends, "words": words, "slowest_s": slowest}


def send(name: str, ports: Ports, seconds: float) -> dict[str, Any]:
    """A load or an attack, by its name."""
    print("{}", flush=True)
    if name in LOADS:
        return requests(ports, LOADS[name], seconds)
    return {"ends": asyncio.run(ATTACKS[name](ports, seconds)), "words": {}}


# ------------------------------------------------------------ the stream beside


class Stream:
    """Runs through, begun again where it comes to its end; the times of its messages."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self._times: list[float] = []
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        stub: Any = pb_grpc.InferenceServiceStub(self._channel)
        request = asked()
        request.sampling.max_tokens = 1500  # Pocket's context holds no more
        request.sampling.ignore_eos = True
        while True:
            count = 0
            async for message in stub.Generate(request):
                if message.HasField("delta"):
                    count += 1
                    self._times.append(time.perf_counter() if count > 1 else -1.0)

    def gaps(self) -> list[float]:
        """Milliseconds between messages of one call so far; begins anew."""
        times, self._times = self._times, self._times[-1:]
        return [(b - a) * 1e3 for a, b in pairwise(times) if a > 0 and b > 0]

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close()


async def beside(stream: Stream, ports: Ports, name: str, seconds: float) -> dict[str, Any]:
    """Have a process send a load, and look at the stream meanwhile."""
    told: dict[str, Any] = {"ends": {}, "words": {}}
    if name == NOTHING:
        stream.gaps()
        await asyncio.sleep(seconds)
    else:
        words = [__file__, "--send", name, "--at", f"{ports.grpc},{ports.http}"]
        sender = await asyncio.create_subprocess_exec(
            sys.executable, *words, "--seconds", str(seconds), stdout=asyncio.subprocess.PIPE
        )
        assert sender.stdout is not None
        await sender.stdout.readline()
        stream.gaps()
        told = json.loads(await sender.stdout.readline())
        await sender.wait()
    return told | {"gap_ms": max(stream.gaps(), default=PATIENCE * 1e3)}


# ------------------------------------------------------------ rounds


async def rounds(options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Of each load what all rounds gave, and what the server held behind each round."""
    names = options.only or [NOTHING, *LOADS, *ATTACKS]
    found: dict[str, Any] = {name: {"gaps_ms": [], "ends": Counter()} for name in names}
    memory: list[dict[str, float]] = []
    with served(options.step_ms) as (ports, process):
        stream = Stream(ports.grpc)
        await asyncio.sleep(2.0)
        until = time.monotonic() + 60 * options.minutes
        while time.monotonic() < until or not memory:
            for name, row in found.items():
                told = await beside(stream, ports, name, options.seconds)
                row["gaps_ms"].append(told.pop("gap_ms"))
                row["ends"].update(told.pop("ends"))
                row["slowest_s"] = max(row.get("slowest_s", 0.0), told.pop("slowest_s", 0.0))
                row |= told
            await asyncio.sleep(options.seconds)
            memory.append(held(process))
            print(f"round {len(memory)}: {memory[-1]}", flush=True)
        await stream.close()
        if not process.is_running():
            raise RuntimeError("the server has ended")
    return found, memory


# ------------------------------------------------------------ verdicts


def same_words(words: dict[str, str]) -> bool:
    """Whether both APIs say the same, each by its own names of the fields."""
    told = {without_fields(text) for text in words.values()}
    return len(told) <= 1


def without_fields(text: str) -> str:
    return "; ".join(part.partition(": ")[2] for part in text.split("; "))


def faults_of(name: str, row: dict[str, Any], usual: float) -> Iterator[str]:
    load, gap = LOADS.get(name), statistics.median(row["gaps_ms"])
    refused, done = {"400", "413", "INVALID_ARGUMENT"}, {"200", "OK"}
    good = row["ends"].keys() if load is None else (refused if load.refused else done)
    if row["ends"].keys() - good or any(end[:1] == "5" for end in row["ends"]):
        yield f"was answered {dict(row['ends'])}"
    if not same_words(row.get("words", {})):
        yield f"differs between the faces: {row['words']}"
    if usual and gap > MAX_GAP * usual:
        yield f"made another stream's longest gap {gap / usual:.2f} times the usual"


def growth_of(memory: list[dict[str, float]]) -> Iterator[str]:
    """By the most that was held: what is kept of grammars comes and goes."""
    half = memory[len(memory) // 2 :]
    middle = len(half) // 2
    for name in half[0] if middle else ():
        first, last = (max(one[name] for one in part) for part in (half[:middle], half[middle:]))
        if last > first * (1 + MAX_GROWTH) + 2:
            yield f"{name} went from {first:.1f} to {last:.1f} over the last half"


def report(
    found: dict[str, Any], memory: list[dict[str, float]], options: argparse.Namespace
) -> int:
    usual = statistics.median(found[NOTHING]["gaps_ms"]) if NOTHING in found else 0.0
    judged = usual if options.step_ms else 0.0
    rows, faults = [], list(growth_of(memory))
    for name, row in found.items():
        gap = statistics.median(row["gaps_ms"])
        told = [f"{name}: {fault}" for fault in faults_of(name, row, judged)]
        over = gap / usual if usual else None
        rows.append({"load": name, **row, "median_gap_ms": gap, "over_nothing": over})
        faults += told
    print_table(
        "beside another stream",
        ["load", "answers", "gap ms", "of usual", "slowest s"],
        [
            [
                row["load"],
                ", ".join(f"{end} {count}" for end, count in row["ends"].items()),
                row["median_gap_ms"],
                row["over_nothing"],
                row["slowest_s"],
            ]
            for row in rows
        ],
    )
    for row in rows:
        for face, words in row.get("words", {}).items():
            if words:
                print(f"{row['load']}, {face}: {words[:300]}")
    if options.out is not None:
        write_results(options.out, rows, memory=memory)
    for fault in faults:
        print(f"hostile: {fault}", file=sys.stderr)
    return 1 if faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--step-ms", type=float, default=10.0, help="of a fake device; 0: Pocket")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load, each round")
    parser.add_argument("--only", nargs="*", default=None, help="loads to send")
    parser.add_argument("--out", type=Path, default=None, help="write results as JSON")
    parser.add_argument("--send", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--at", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send is not None:
        ports = Ports(*map(int, options.at.split(",")))
        print(json.dumps(send(options.send, ports, options.seconds)), flush=True)
        return 0
    return report(*asyncio.run(rounds(options)), options)


if __name__ == "__main__":
    sys.exit(main())
