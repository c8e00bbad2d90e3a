"""What becomes of streams when replicas are killed: three servers, `kill -9`, every token checked.

Three `quire serve` over a model on the CPU in fp32, one client of all three. 1,000 streams of 200
tokens, half of them sampled, at most 64 at a time, run undisturbed, and then once more while a
random replica is killed again and again, the next one as soon as the last one serves. Each stream
must bring the tokens of the undisturbed run: none lost, none twice. Then the same with resuming
off, where it must fail, and a request that kills whatever serves it, among five replicas.

    python benchmarks/failover.py [--streams 1000] [--tokens 200] [--out benchmarks/results/…]

Exits with 1 if anything is not as it must be.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import common

from quire.clients import AsyncClient, Broken, CallError, Delta, ReplicaPolicy, Resumed, RetryPolicy
from quire.v1 import inference_pb2 as pb

REPLICAS, POISONED = 3, 5
PARALLEL = 64
LEAST_BROKEN = 200  # streams, of the whole run
PATIENCE = 180.0  # seconds that a server has to come up
POISON = 299  # an id that no other prompt holds
POISON_SERVER = Path(__file__).with_name("failover_poison.py")


# ------------------------------------------------------------ replicas


class Replica:
    """A server in a process of its own, which always listens on the same port."""

    def __init__(self, command: Sequence[str], log: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._command = [*command, "--port", str(self.port)]
        self._log = log
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "QUIRE_HTTP_PORT": "0"}
        return subprocess.Popen(
            self._command, stdout=self._log, stderr=subprocess.STDOUT, env=environment
        )

    def kill(self) -> None:
        """As a machine's power would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        """On the same port."""
        self.process = self._start()

    async def serves(self) -> None:
        """Returns once it says SERVING."""
        async with asyncio.timeout(PATIENCE), AsyncClient(self.address) as client:
            while True:
                with contextlib.suppress(CallError):
                    if await client.health(timeout=5.0) == "SERVING":
                        return
                if self.process.poll() is not None:
                    raise RuntimeError(f"a replica ended with {self.process.returncode}")
                await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def replicas(command: Sequence[str], count: int) -> AsyncIterator[list[Replica]]:
    """So many, ready; all are killed in the end."""
    with tempfile.TemporaryFile() as log:
        fleet = [Replica(command, log) for _ in range(count)]
        try:
            await asyncio.gather(*(one.serves() for one in fleet))
            yield fleet
        finally:
            for one in fleet:
                one.kill()


# ------------------------------------------------------------ streams


@dataclass
class Stream:
    """What came of one request."""

    tokens: tuple[int, ...] = ()
    finished: int = 0  # as told by the end: completion tokens
    resumed: list[Resumed] = field(default_factory=list)
    error: str = ""
    often: bool = False  # it broke a third time


def request(number: int, tokens: int) -> pb.GenerateRequest:
    """With a beginning that every eighth one shares; every other one is sampled."""
    chance = random.Random(number)
    shared = [300 + (number % 8)] * 32
    own = [chance.randrange(300, 4000) for _ in range(chance.randrange(4, 40))]
    made = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[*shared, *own]), ids_only=True)
    made.sampling.max_tokens, made.sampling.ignore_eos = tokens, True
    made.sampling.temperature = 1.0 if number % 2 else 0.0
    made.sampling.seed = number  # one that is drawn differs from run to run
    return made


async def follow(client: AsyncClient, made: pb.GenerateRequest) -> Stream:
    """One stream to its end."""
    stream, tokens = Stream(), list[int]()
    try:
        async for event in client.send(made):
            if isinstance(event, Delta):
                tokens += event.token_ids
            elif isinstance(event, Resumed):
                stream.resumed.append(event)
            elif hasattr(event, "completion_tokens"):
                stream.finished = event.completion_tokens
    except CallError as error:
        stream.error = str(error)
        stream.often = isinstance(error, Broken) and error.often
    stream.tokens = tuple(tokens)
    return stream


async def run_all(
    addresses: Sequence[str], options: argparse.Namespace, *, resumes: int, count: int
) -> list[Stream]:
    """All streams, at most PARALLEL at a time."""
    policy = ReplicaPolicy(resumes=resumes, tell_resumed=True)
    places = asyncio.Semaphore(PARALLEL)
    retry = RetryPolicy(attempts=8)
    async with AsyncClient(list(addresses), replicas=policy, retry=retry) as client:

        async def one(number: int) -> Stream:
            async with places:
                return await follow(client, request(number, options.tokens))

        return list(await asyncio.gather(*(one(number) for number in range(count))))


async def kill_again_and_again(fleet: list[Replica], kills: Counter[str]) -> None:
    """A random one, the next once it serves, and streams have been given out for a moment."""
    chance = random.Random(1)
    while True:
        await asyncio.sleep(chance.uniform(0.5, 2.0))
        victim = chance.choice(fleet)
        victim.kill()
        kills[victim.address] += 1
        victim.restart()
        await victim.serves()


async def disturbed(
    fleet: list[Replica], options: argparse.Namespace, *, resumes: int, count: int
) -> tuple[list[Stream], Counter[str]]:
    """The streams while replicas are killed; all serve again in the end."""
    kills: Counter[str] = Counter()
    killer = asyncio.create_task(kill_again_and_again(fleet, kills))
    try:
        addresses = [one.address for one in fleet]
        streams = await run_all(addresses, options, resumes=resumes, count=count)
    finally:
        killer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await killer
    for one in fleet:
        if one.process.poll() is not None:
            one.restart()
    await asyncio.gather(*(one.serves() for one in fleet))
    return streams, kills


# ------------------------------------------------------------ judging


@dataclass
class Verdict:
    """What is not as it must be."""

    wrong: list[str] = field(default_factory=list)

    def check(self, holds: bool, words: str) -> None:
        """Note it if it does not hold."""
        if not holds:
            self.wrong.append(words)


def compare(streams: list[Stream], expected: list[Stream]) -> dict[str, int]:
    """How many came out as undisturbed, and how the others did not."""
    counts: Counter[str] = Counter()
    for got, wanted in zip(streams, expected, strict=True):
        if got.often:
            counts["broken a third time"] += 1
        elif got.error:
            counts["ended with an error"] += 1
        elif got.tokens == wanted.tokens and got.finished == wanted.finished:
            counts["equal"] += 1
        elif len(got.tokens) != len(wanted.tokens):
            counts["of another length"] += 1
        else:
            counts["of other tokens"] += 1
    return dict(counts)


def pauses(streams: list[Stream]) -> list[float]:
    """Seconds from each break until the stream went on."""
    return sorted(event.pause_seconds for one in streams for event in one.resumed)


async def books(fleet: list[Replica]) -> list[str]:
    """Whether the survivors' counters add up, with nothing left open."""
    wrong = []
    for one in fleet:
        async with AsyncClient(one.address) as client:
            for _ in range(100):
                stats = await client.stats(timeout=30.0)
                if not (stats.requests.running or stats.requests.waiting):
                    break
                await asyncio.sleep(0.1)
        asked, cache, tokens = stats.requests, stats.cache, stats.tokens
        ended = asked.finished_stop + asked.finished_length
        ended += asked.finished_cancelled + asked.finished_error
        if asked.accepted != ended or asked.running or asked.waiting:
            wrong.append(f"{one.address}: accepted {asked.accepted}, ended {ended}")
        if cache.blocks_in_use or cache.blocks_free != cache.blocks_total:
            wrong.append(f"{one.address}: {cache.blocks_in_use} blocks in use")
        if tokens.generated < tokens.delivered:
            wrong.append(f"{one.address}: {tokens.delivered} of {tokens.generated} delivered")
    return wrong


async def poison() -> dict[str, Any]:
    """A request that kills its server, beside others that do not, among five."""
    command = [sys.executable, str(POISON_SERVER), "--poison", str(POISON)]
    async with replicas(command, POISONED) as fleet:
        policy = ReplicaPolicy(routing="round_robin")
        addresses = [one.address for one in fleet]
        retry = RetryPolicy(attempts=8)
        async with AsyncClient(addresses, replicas=policy, retry=retry) as client:
            bad = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[POISON] * 4), ids_only=True)
            bad.sampling.max_tokens = 8
            stream = await follow(client, bad)
            good = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[300]), ids_only=True)
            good.sampling.max_tokens = 3
            after = await follow(client, good)
        dead = sum(one.process.poll() is not None for one in fleet)
    return {
        "replicas": POISONED,
        "killed": dead,
        "often": stream.often,
        "served after": after.error == "" and len(after.tokens) == 3,
    }


# ------------------------------------------------------------ the whole


async def measure(options: argparse.Namespace) -> tuple[dict[str, Any], Verdict]:
    """All parts, in order."""
    verdict, quire = Verdict(), str(Path(sys.executable).with_name("quire"))
    command = [quire, "serve", "--model", options.model, "--device", "cpu", "--dtype", "float32"]
    command += ["--max-num-seqs", "64", "--num-blocks", "2048", "--max-queue-seconds", "600"]
    async with replicas(command, REPLICAS) as fleet:
        addresses = [one.address for one in fleet]
        began = time.monotonic()
        expected = await run_all(addresses, options, resumes=2, count=options.streams)
        quiet = time.monotonic() - began
        verdict.check(not any(one.error for one in expected), "the undisturbed run had errors")
        print(f"undisturbed: {options.streams} streams in {quiet:.0f} s", flush=True)

        began = time.monotonic()
        streams, kills = await disturbed(fleet, options, resumes=2, count=options.streams)
        loud, found = time.monotonic() - began, compare(streams, expected)
        print(f"disturbed: {found} in {loud:.0f} s, {kills.total()} kills", flush=True)
        books_wrong = await books(fleet)
        short = options.streams // 5
        without, kills_without = await disturbed(fleet, options, resumes=0, count=short)
        found_without = compare(without, expected[:short])
        print(f"without resuming: {found_without}, {kills_without.total()} kills", flush=True)
    poisoned = await poison()
    print(f"poison: {poisoned}", flush=True)
    broken = [one for one in streams if one.resumed]
    waits = pauses(streams) or [0.0]
    judge(verdict, found, len(broken), found_without, poisoned, options)
    for line in books_wrong:
        verdict.check(False, line)
    return {
        "replicas": REPLICAS,
        "streams": options.streams,
        "at a time": PARALLEL,
        "sampled": options.streams // 2,  # see request
        "tokens": options.tokens,
        "kills": kills.total(),
        "streams broken in the middle": len(broken),
        "broken twice": sum(len(one.resumed) == 2 for one in broken),
        "outcome": found,
        "seconds undisturbed": round(quiet, 1),
        "seconds disturbed": round(loud, 1),
        "pause median s": round(statistics.median(waits), 3),
        "pause p99 s": round(waits[int(0.99 * (len(waits) - 1))], 3),
        "longest pause s": round(waits[-1], 3),
        "books": books_wrong or "add up",
        "without resuming": {"streams": short, "kills": kills_without.total(), **found_without},
        "poison": poisoned,
    }, verdict


def judge(
    verdict: Verdict,
    found: dict[str, int],
    broken: int,
    found_without: dict[str, int],
    poisoned: dict[str, Any],
    options: argparse.Namespace,
) -> None:
    """What must hold."""
    right = found.get("equal", 0) + found.get("broken a third time", 0)
    verdict.check(right == options.streams, f"not all streams are as undisturbed: {found}")
    enough = min(LEAST_BROKEN, options.streams // 5)
    verdict.check(broken >= enough, f"only {broken} streams broke in the middle")
    verdict.check(found_without.get("ended with an error", 0) > 0, "nothing fails without resuming")
    verdict.check(poisoned["killed"] <= 3, f"a request killed {poisoned['killed']} replicas")
    verdict.check(poisoned["often"] and poisoned["served after"], f"after poison: {poisoned}")


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--model", default="pocket", help="as `quire serve --model` takes it")
    parser.add_argument(
        "--out", type=Path, help="JSON, for example benchmarks/results/failover.json"
    )
    options = parser.parse_args()
    if options.streams < 5 or options.tokens < 1:
        parser.error("--streams: at least 5; --tokens: at least 1")
    row, verdict = asyncio.run(measure(options))
    if options.out:
        common.write_results(options.out, [row], wrong=verdict.wrong)
    for line in verdict.wrong:
        print(f"failover: {line}", file=sys.stderr)
    print("as it must be" if not verdict.wrong else f"{len(verdict.wrong)} faults")
    return bool(verdict.wrong)


if __name__ == "__main__":
    sys.exit(main())
