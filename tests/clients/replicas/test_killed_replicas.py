"""The short form of benchmarks/failover.py: two servers, of which one is killed under its streams,
and every token is as in an undisturbed run."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from support.patience import PATIENCE
from support.server_process import process

from quire.clients import AsyncClient, Delta, ReplicaPolicy, Resumed, Unavailable
from quire.v1 import inference_pb2 as pb

STREAMS, WITHOUT = 8, 4
TOKENS = 200
SOME = 8  # tokens that each stream has when the server is killed


@dataclass
class Heard:
    tokens: list[int] = field(default_factory=list)
    resumed: list[Resumed] = field(default_factory=list)
    failed: bool = False


def request(number: int) -> pb.GenerateRequest:
    """Every other one is sampled."""
    ids = [300 + number, *range(310, 330)]
    made = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), ids_only=True)
    made.sampling.MergeFrom(
        pb.SamplingParams(
            max_tokens=TOKENS, ignore_eos=True, temperature=float(number % 2), seed=number
        )
    )
    return made


class Run:
    """Streams of one client, and a moment at which those of the first server are under way."""

    def __init__(self) -> None:
        self.heard = [Heard() for _ in range(STREAMS + WITHOUT)]
        self.under_way = asyncio.Event()

    async def follow(self, client: AsyncClient, number: int) -> None:
        heard = self.heard[number]
        try:
            async for event in client.send(request(number)):
                if isinstance(event, Delta):
                    heard.tokens += event.token_ids
                elif isinstance(event, Resumed):
                    heard.resumed.append(event)
                if all(len(one.tokens) >= SOME for one in self.heard[::2]):
                    self.under_way.set()
        except Unavailable:
            heard.failed = True

    async def all(self, client: AsyncClient, without: AsyncClient) -> None:
        """without: does not resume."""
        numbers = range(STREAMS + WITHOUT)
        clients = [client if number < STREAMS else without for number in numbers]
        await asyncio.gather(*map(self.follow, clients, numbers))


def test_a_killed_server_costs_no_token_but_where_resuming_is_off() -> None:
    async def test(killed_address: str, left: str, kill: Callable[[], None]) -> None:
        quiet, loud = Run(), Run()
        async with AsyncClient(left, timeout=PATIENCE) as client:
            await quiet.all(client, client)
        assert not any(one.failed for one in quiet.heard)
        where = [killed_address, left]
        turns = ReplicaPolicy(routing="round_robin", tell_resumed=True)
        never = ReplicaPolicy(routing="round_robin", resumes=0)
        async with (
            AsyncClient(where, timeout=PATIENCE, replicas=turns) as client,
            AsyncClient(where, timeout=PATIENCE, replicas=never) as without,
        ):
            running = asyncio.create_task(loud.all(client, without))
            await loud.under_way.wait()
            kill()
            await running
        for number in range(STREAMS):
            assert loud.heard[number].tokens == quiet.heard[number].tokens
        told = [one.resumed for one in loud.heard[:STREAMS] if one.resumed]
        assert len(told) == STREAMS // 2  # they took turns
        for (resumed,) in told:
            assert (resumed.left, resumed.replica, resumed.breaks) == (*where, 1)
            assert SOME <= resumed.tokens < TOKENS
        assert sum(one.failed for one in loud.heard[STREAMS:]) == WITHOUT // 2
        await books(left)

    async def books(address: str) -> None:
        """What the survivor counted adds up."""
        async with AsyncClient(address, timeout=PATIENCE) as client:
            stats = await client.stats()
        asked, cache = stats.requests, stats.cache
        quiet = STREAMS + WITHOUT
        assert asked.accepted == asked.finished_length == quiet + STREAMS + WITHOUT // 2
        assert cache.blocks_in_use == 0 and cache.blocks_free == cache.blocks_total

    with process("--num-blocks", "512") as doomed, process("--num-blocks", "512") as other:
        addresses = (doomed.address(), other.address())
        asyncio.run(asyncio.wait_for(test(*addresses, doomed.process.kill), PATIENCE))
