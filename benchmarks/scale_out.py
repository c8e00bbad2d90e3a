"""What two replicas do that one does not, and what conversations find cached over four.

Servers in processes of their own over the fake device, whose steps take 20 ms whatever is in them;
one client process of the client library's. So what is measured is the host's share: routing, gRPC,
the event loops.

    python benchmarks/scale_out.py [--rounds 6] [--out benchmarks/results/scale-out.json]

Rows: tokens a second of 16 streams a replica, for one and for two; the share of prompt tokens found
cached by 8 conversations of 10 turns, for one replica and for four.
"""

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import common
from failover import replicas

from quire.clients import AsyncClient, Finished, ReplicaPolicy
from quire.clients.replicas.policy import PREFIX, ROUND_ROBIN

STEP_MS, SEQS, TOKENS = 20.0, 16, 64
CONVERSATIONS, TURNS = 8, 10
SERVER = Path(__file__).with_name("failover_poison.py")


def command(seqs: int) -> list[str]:
    """A server's, but for its port."""
    return [sys.executable, str(SERVER), "--step-ms", str(STEP_MS), "--seqs", str(seqs)]


def client_of(addresses: Sequence[str], routing: str) -> AsyncClient:
    """The client library, over all of them."""
    return AsyncClient(addresses, replicas=ReplicaPolicy(routing=routing))


async def rate(count: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of SEQS streams a replica, each asked again as soon as it has ended."""
    async with replicas(command(SEQS), count) as fleet:
        async with client_of([one.address for one in fleet], ROUND_ROBIN) as client:
            await _streams(client, count, 1)  # connections, and first calls
            began, cpu = time.monotonic(), time.process_time()
            tokens = await _streams(client, count, rounds)
            seconds = time.monotonic() - began
            busy = (time.process_time() - cpu) / seconds
    value = tokens / seconds
    return {
        "what": "tokens a second",
        "replicas": count,
        "value": round(value, 1),
        "of_the_device": round(value / (count * SEQS * 1000 / STEP_MS), 4),
        "client_cpu": round(busy, 3),
        "machine_load": round(os.getloadavg()[0], 1),
    }


async def _streams(client: AsyncClient, count: int, rounds: int) -> int:
    async def one(number: int) -> int:
        got = 0
        for turn in range(rounds):
            chance = random.Random(number * 1000 + turn)
            ids = [chance.randrange(300, 4000) for _ in range(24)]
            async for event in client.generate(
                ids, max_tokens=TOKENS, ignore_eos=True, ids_only=True
            ):
                if isinstance(event, Finished):
                    got += event.completion_tokens
        return got

    return sum(await asyncio.gather(*(one(i) for i in range(count * SEQS))))


async def hits(count: int) -> dict[str, Any]:
    """Of all prompt tokens of the conversations, those that were found cached."""
    async with replicas(command(SEQS), count) as fleet:
        async with client_of([one.address for one in fleet], PREFIX) as client:
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


async def measure(rounds: int) -> list[dict[str, Any]]:
    """All rows."""
    rows = [await rate(1, rounds), await rate(2, rounds), await hits(1), await hits(4)]
    for one, several in (rows[:2], rows[2:]):
        several["of_one"] = round(several["value"] / one["value"], 4)
    return rows


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="requests of each stream")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    rows = asyncio.run(measure(options.rounds))
    shown = ("what", "replicas", "value", "of_one", "of_the_device", "client_cpu", "machine_load")
    cells = [[row.get(name, "") for name in shown] for row in rows]
    common.print_table("scale out", shown, cells)
    if options.out:
        common.write_results(options.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
