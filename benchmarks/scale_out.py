"""What two replicas do that one does not, and what conversations find cached over four.

Servers in processes of their own over the fake device, whose steps take 20 ms whatever is in them;
one client process of the client library's. So what is measured is the host's share: routing, gRPC,
the event loops.

    python benchmarks/scale_out.py [--seconds 8] [--ray] [--out benchmarks/results/scale-out.json]

Calls choose by prefix, as the client and Ray's router do unasked. Rows: tokens a second of 16
streams a replica, whose answers have 32 to 96 tokens, for one and for two, by the client library
and, with --ray, through Ray Serve's proxy, there of fewer streams too; the share of prompt tokens
found cached by 8 conversations of 10 turns, for one replica and for four. A row of a rate also has
the share of the machine's CPUs that was busy, whoever it was, what the client and the servers took
of a CPU, in all and for a token, the median time to a call's first token, the tokens of a message,
and, through Ray, what a token took more there than without it, in all processes together.
"""

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "shared"))

import common
import psutil
from failover import replicas
from support.free_ports import free_ports

from quire.clients import AsyncClient, Delta, Finished

STEP_MS, SEQS, WARM_UP = 20.0, 16, 3.0
LENGTHS = (32, 97)  # tokens of an answer, drawn: so streams do not begin and end together
CONVERSATIONS, TURNS = 8, 10
SERVER = Path(__file__).with_name("failover_poison.py")
RAY_SERVER = Path(__file__).with_name("scale_out_ray.py")
RAY_WIDTHS = (2, 4, SEQS)  # streams a replica: what few CPUs carry there, and all
BUSY = 0.7  # share of the machine's CPUs from which on a rate says nothing of the software
DIRECT, RAY = "the client", "ray's proxy"
Row = dict[str, Any]


def command(seqs: int) -> list[str]:
    """A server's, but for its port."""
    return [sys.executable, str(SERVER), "--step-ms", str(STEP_MS), "--seqs", str(seqs)]


@contextlib.asynccontextmanager
async def served(count: int, through: str) -> AsyncIterator[list[str]]:
    """Addresses at which so many replicas are served, ready."""
    if through == DIRECT:
        async with replicas(command(SEQS), count) as fleet:
            yield [one.address for one in fleet]
        return
    port, http_port = free_ports(2)
    words = [sys.executable, str(RAY_SERVER), "--replicas", str(count), "--port", str(port)]
    words += ["--http-port", str(http_port), "--step-ms", str(STEP_MS), "--seqs", str(SEQS)]
    process = await asyncio.create_subprocess_exec(
        *words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        if not line.startswith(b"serving"):
            raise RuntimeError(f"quire ray said {line!r}")
        yield [f"127.0.0.1:{port}"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@dataclass
class Spent:
    """CPU time since this was made: of the machine's, of this process, of those that it started."""

    began: float = field(default_factory=time.monotonic)
    _machine: tuple[float, float] = field(default_factory=lambda: _machine_seconds())
    _own: float = field(default_factory=time.process_time)
    _servers: float = field(default_factory=lambda: _servers_seconds())

    def told(self) -> dict[str, float]:
        """In CPUs; and as a share of all there are."""
        seconds = time.monotonic() - self.began
        busy, passed = (
            now - then for now, then in zip(_machine_seconds(), self._machine, strict=True)
        )
        return {
            "seconds": round(seconds, 2),
            "machine_busy": round(busy / passed, 3),
            "client_cpu": round((time.process_time() - self._own) / seconds, 3),
            "servers_cpu": round((_servers_seconds() - self._servers) / seconds, 3),
        }


def _machine_seconds() -> tuple[float, float]:
    """Of all CPUs together: busy, and passed."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    passed = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return passed - idle, passed


def _servers_seconds() -> float:
    total = 0.0
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = one.cpu_times()
            total += times.user + times.system
    return total


async def rates(
    count: int, seconds: float, through: str = DIRECT, widths: Sequence[int] = (SEQS,)
) -> list[Row]:
    """A row for each number of streams a replica, each asked again as soon as it has ended."""
    async with (
        served(count, through) as addresses,
        AsyncClient(addresses) as client,
    ):
        return [await _rate(client, count, width, seconds, through) for width in widths]


async def _rate(client: AsyncClient, count: int, width: int, seconds: float, through: str) -> Row:
    got, told = await _measured(client, count * width, seconds)
    tokens = got.tokens
    value, cpu = tokens / told["seconds"], told["client_cpu"] + told["servers_cpu"]
    return {
        "what": "tokens a second",
        "through": through,
        "replicas": count,
        "streams_a_replica": width,
        "value": round(value, 1),
        "of_the_device": round(value / (count * width * 1000 / STEP_MS), 4),
        **told,
        "cpu_ms_a_token": round(1000 * cpu * told["seconds"] / tokens, 3),
        "tokens_a_message": round(tokens / got.messages, 2),
        "first_token_ms": round(1000 * statistics.median(got.first), 1),
        "machine_load": round(os.getloadavg()[0], 1),
    }


@dataclass(slots=True)
class Got:
    """What has come. first: seconds from asking to a call's first token."""

    tokens: int = 0
    messages: int = 0
    first: list[float] = field(default_factory=list)


async def _measured(
    client: AsyncClient, streams: int, seconds: float
) -> tuple[Got, dict[str, float]]:
    """Of so many seconds, once the streams have got out of step."""
    heard: list[Got] = [Got()]
    asking = [asyncio.create_task(_ask_on(client, i, heard)) for i in range(streams)]
    await asyncio.sleep(WARM_UP)
    got, spent = Got(), Spent()
    heard[0] = got
    await asyncio.sleep(seconds)
    heard[0], told = Got(), spent.told()
    for one in asking:
        one.cancel()
    ended = await asyncio.gather(*asking, return_exceptions=True)
    for error in ended:
        if not isinstance(error, asyncio.CancelledError):
            raise RuntimeError("a stream has failed") from error
    return got, told


async def _ask_on(client: AsyncClient, number: int, heard: list[Got]) -> None:
    """One stream, without an end; what it hears goes to the one in the list."""
    chance = random.Random(number)
    while True:
        ids = [chance.randrange(300, 4000) for _ in range(24)]
        length, asked, first = chance.randrange(*LENGTHS), time.monotonic(), True
        async for event in client.generate(ids, max_tokens=length, ignore_eos=True, ids_only=True):
            if isinstance(event, Delta):
                got = heard[0]
                got.messages += 1
                got.tokens += len(event.token_ids)
                if first:
                    got.first.append(time.monotonic() - asked)
                    first = False


async def hits(count: int) -> Row:
    """Of all prompt tokens of the conversations, those that were found cached."""
    async with replicas(command(SEQS), count) as fleet:
        async with AsyncClient([one.address for one in fleet]) as client:
            told = await asyncio.gather(*(_talk(client, i) for i in range(CONVERSATIONS)))
    found, asked = (sum(column) for column in zip(*told, strict=True))
    value = round(found / asked, 4)
    return {"what": "prompt tokens found cached", "replicas": count, "value": value}


async def _talk(client: AsyncClient, number: int) -> tuple[int, int]:
    chance = random.Random(number)
    history: list[int] = []
    found = asked = 0
    for _ in range(TURNS):
        history += [chance.randrange(300, 4000) for _ in range(chance.randrange(20, 60))]
        said: list[int] = []
        async for event in client.generate(history, max_tokens=32, ignore_eos=True, ids_only=True):
            said += getattr(event, "token_ids", ())
            if isinstance(event, Finished):
                found, asked = found + event.cached_tokens, asked + event.prompt_tokens
        history += said
    return found, asked


async def measure(seconds: float, with_ray: bool) -> list[Row]:
    """All rows."""
    ones, twos = await rates(1, seconds), await rates(2, seconds)
    if with_ray:
        ones += await rates(1, seconds, RAY, RAY_WIDTHS)
        twos += await rates(2, seconds, RAY, RAY_WIDTHS)
    for rows in (ones, twos):
        for row in rows[1:]:
            more = row["cpu_ms_a_token"] - rows[0]["cpu_ms_a_token"]
            row["more_cpu_ms_a_token"] = round(more, 3)
    ones.append(await hits(1))
    twos.append(await hits(4))
    for one, several in zip(ones, twos, strict=True):
        several["of_one"] = round(several["value"] / one["value"], 4)
    return [row for pair in zip(ones, twos, strict=True) for row in pair]


SHOWN = ("what", "through", "replicas", "streams_a_replica", "value", "of_one", "of_the_device",
         "machine_busy", "client_cpu", "servers_cpu", "cpu_ms_a_token", "tokens_a_message",
         "first_token_ms", "more_cpu_ms_a_token")  # fmt: skip


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each rate")
    parser.add_argument("--ray", action="store_true", help="through Ray's proxy too")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.seconds < 1:
        parser.error("--seconds: at least 1")
    if options.ray and find_spec("ray") is None:
        parser.error("--ray: the package ray is missing: pip install '.[ray]'")
    rows = asyncio.run(measure(options.seconds, options.ray))
    cells = [[row.get(name, "") for name in SHOWN] for row in rows]
    common.print_table("scale out", SHOWN, cells)
    for row in rows:
        if row.get("machine_busy", 0.0) > BUSY:
            where = f"{row['through']}, {row['replicas']} of {row['streams_a_replica']} streams"
            print(f"{where}: {row['machine_busy']} of the CPUs busy")
    if options.out:
        common.write_results(options.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
