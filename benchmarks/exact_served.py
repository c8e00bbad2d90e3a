"""Streams served under load, cancelled, preempted and resumed elsewhere, beside each run alone.

Two `quire serve` with the same random weights on one machine. Each of 1,000 requests runs alone
first. Then all at once, 64 at a time, over a cache so small that requests are preempted; every
fifth is cancelled in the middle, and has to bring the beginning of what it brought alone. Then once
more, each broken off at a token of its own and resumed at the other server, which is at work, too.

    python benchmarks/exact_served.py --model-shape 0.6B [--modes on off] [--out FILE]

With `--exact on` no token may differ (exit code 1). With `off` the share that does, and where, says
what a stream that is resumed on a GPU in 16 bits promises without it.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import Row, print_table, write_results
from failover import PARALLEL, replicas

from quire.clients import AsyncClient, Delta
from quire.v1 import inference_pb2 as pb

LEAST, MOST = 24, 64  # tokens of a stream
_OTHER_USERS = 4  # of five requests one is cancelled


def request(number: int, vocabulary: int) -> pb.GenerateRequest:
    """Every eighth one begins alike; greedy, sampled, filtered and penalised ones by turns."""
    chance = random.Random(number)
    shared = [300 + number % 8] * 70
    own = [chance.randrange(vocabulary) for _ in range(chance.randrange(4, 200))]
    made = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[*shared, *own]), ids_only=True)
    made.sampling.max_tokens = chance.randrange(LEAST, MOST + 1)
    made.sampling.ignore_eos = True
    made.sampling.seed = number
    made.sampling.temperature = 0.0 if number % 4 == 0 else 0.8
    if number % 4 == 2:
        made.sampling.top_k, made.sampling.top_p = 50, 0.95
    if number % 4 == 3:
        made.sampling.repetition_penalty = 1.2
    return made


async def tokens_of(
    client: AsyncClient, made: pb.GenerateRequest, most: int | None = None
) -> list[int]:
    """All of its tokens, or, after at least `most`, those that came before it was cancelled."""
    tokens: list[int] = []
    async with client.send(made) as events:
        async for event in events:
            if isinstance(event, Delta):
                tokens += event.token_ids
            if most is not None and len(tokens) >= most:
                break
    return tokens


async def together(work: Sequence[Callable[[], Awaitable[list[int]]]], most: int) -> list[Any]:
    """All of it, at most so many at a time."""
    places = asyncio.Semaphore(most)

    async def one(part: Callable[[], Awaitable[list[int]]]) -> list[int]:
        async with places:
            return await part()

    return list(await asyncio.gather(*(one(part) for part in work)))


async def resumed(
    first: AsyncClient, second: AsyncClient, made: pb.GenerateRequest, at: int
) -> list[int]:
    """Its tokens, those up to `at` from one server and the rest from the other."""
    held = (await tokens_of(first, made, at))[:at]
    again = pb.GenerateRequest()
    again.CopyFrom(made)
    again.resume_token_ids.extend(held)
    return held + await tokens_of(second, again)


def compared(pair: str, mode: str, alone: list[list[int]], found: list[list[int]]) -> Row:
    """found may be shorter than what came alone, where it was cancelled."""
    places = []
    for right, got in zip(alone, found, strict=True):
        wrong = [at for at, (a, b) in enumerate(zip(right, got, strict=False)) if a != b]
        if wrong or len(got) > len(right) or not got:
            places.append(wrong[0] if wrong else len(got))
    return {
        "workload": "served",
        "pair": pair,
        "exact": mode,
        "streams": len(found),
        "tokens": sum(map(len, found)),
        "streams_that_differ": len(places),
        "share": round(len(places) / len(found), 4),
        "first_difference_at": statistics.median(places) if places else None,
    }


async def measure(mode: str, options: argparse.Namespace) -> list[Row]:
    program = str(Path(sys.executable).with_name("quire"))
    command = [program, "serve", f"random:{options.model_shape}", "--exact", mode]
    command += ["--num-blocks", str(options.num_blocks), "--max-model-len", "1024"]
    command += ["--device", options.device, "--max-queue-seconds", "600"]
    command += ["--queue-target-seconds", "600"]
    async with replicas(command, 2) as servers:
        asks = [request(number, options.vocabulary) for number in range(options.streams)]
        async with AsyncClient(servers[0].address) as one, AsyncClient(servers[1].address) as two:
            info = await one.model_info()
            alone = [await tokens_of(one, ask) for ask in asks]
            chance = random.Random(7)
            ends = [
                chance.randrange(1, len(tokens)) if number % (_OTHER_USERS + 1) == 0 else None
                for number, tokens in enumerate(alone)
            ]
            before = (await one.stats()).cache.preemptions
            crowd = await together(
                [
                    lambda ask=ask, end=end: tokens_of(one, ask, end)
                    for ask, end in zip(asks, ends, strict=True)
                ],
                PARALLEL,
            )
            preempted = (await one.stats()).cache.preemptions - before
            whole = [
                tokens if end is not None else tokens + [-1] * (len(right) - len(tokens))
                for tokens, end, right in zip(crowd, ends, alone, strict=True)
            ]
            broken = await together(
                [
                    lambda ask=ask, at=chance.randrange(1, len(tokens)), turn=number % 2: resumed(
                        *((one, two) if turn else (two, one)), ask, at
                    )
                    for number, (ask, tokens) in enumerate(zip(asks, alone, strict=True))
                ],
                PARALLEL,
            )
    told = {"numerics": info.model.numerics, "model": options.model_shape}
    return [
        compared("under load, cancelled, preempted", mode, alone, whole)
        | told
        | {"preemptions": preempted, "cancelled": sum(end is not None for end in ends)},
        compared("resumed at the other server", mode, alone, broken) | told,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model-shape", default="0.6B")
    parser.add_argument("--modes", nargs="+", choices=("on", "off"), default=["on", "off"])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--num-blocks", type=int, default=150, help="few: so it preempts")
    parser.add_argument("--vocabulary", type=int, default=150_000, help="of the prompts")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=None, help="write results as JSON")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    rows = [row for mode in options.modes for row in asyncio.run(measure(mode, options))]
    columns = ("exact", "pair", "streams", "tokens", "streams_that_differ")
    print_table("served beside alone", columns, [[row[name] for name in columns] for row in rows])
    if options.out is not None:
        write_results(options.out, rows)
    if any(row["exact"] == "on" and row["streams_that_differ"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
