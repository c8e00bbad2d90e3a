"""One client process of the storm: calls of every kind, right and wrong, patient and not.

    python storm_client.py ADDRESS SEED CALLS PARALLEL

Prints a dot as each call ends, so that whoever wants to kill it in mid-work can, and one line of
JSON at the end: what was called, what came of it, and what was wrong about that. The server says a
prompt back, then EOS, so each stream's content is known.
"""

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc

EOS = 2
PATIENCE = 120.0  # seconds after which a call without a status is a violation
SERVICE = "/quire.v1.InferenceService"
Codes = set[str]


class Wrong(Exception):
    """The server broke its word."""


class Client:
    """Calls, and what came of them."""

    def __init__(self, address: str, seed: int) -> None:
        self.chance = random.Random(seed)
        self.address = address
        self.seed = seed
        self.channel = grpc.aio.insecure_channel(address)
        self.stub: Any = pb_grpc.InferenceServiceStub(self.channel)
        self.codes: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.accepted: list[str] = []
        self.received = 0
        self.wrong: list[str] = []

    async def one(self, number: int) -> None:
        """One call of a random kind."""
        kind: str = self.chance.choices(list(KINDS), list(WEIGHTS))[0]
        self.kinds[kind] += 1
        try:
            async with asyncio.timeout(PATIENCE):
                await KINDS[kind](self, f"s{self.seed}-{number}")
        except Wrong as wrong:
            self.wrong.append(f"{kind}: {wrong}")
        except TimeoutError:
            self.wrong.append(f"{kind}: no status in {PATIENCE:g} s")

    async def run(self, calls: int, parallel: int) -> None:
        """All calls, so many at a time."""
        numbers = iter(range(calls))

        async def work() -> None:
            for number in numbers:
                await self.one(number)
                print(".", flush=True)

        await asyncio.gather(*(work() for _ in range(parallel)))
        await self.channel.close()

    # ------------------------------------------------------------ requests

    def request(self, request_id: str, **sampling: Any) -> pb.GenerateRequest:
        """A random request, its prompt from a few families that share beginnings."""
        chance = self.chance
        family, length = chance.randrange(8), chance.randint(1, 60)
        prompt = [300 + family * 100 + i for i in range(length)]
        prompt[-1] = chance.randrange(2000, 4000)
        request = pb.GenerateRequest(
            request_id=request_id,
            token_ids=pb.TokenIds(ids=prompt),
            sampling=pb.SamplingParams(**sampling),
            ids_only=chance.random() < 0.3,
            priority=chance.choice((0, 0, 0, 1)),
        )
        if "max_tokens" not in sampling:
            request.sampling.max_tokens = chance.randint(1, 80)
        return request

    # ------------------------------------------------------------ reading

    async def read(
        self,
        request: pb.GenerateRequest,
        allowed: Codes,
        *,
        stub: Any = None,
        timeout: float | None = None,
        leave: Callable[[Any], None] | None = None,
        leave_after: int = -1,
        pause: float = 0.0,
    ) -> str:
        """Read a call to its status. leave(call) is called after `leave_after` messages."""
        call = (stub or self.stub).Generate(request, timeout=timeout)
        heard = Heard(request)
        if leave is not None and leave_after == 0:
            leave(call)
        try:
            async for message in call:
                heard.take(message)
                if leave is not None and heard.messages == leave_after:
                    leave(call)
                if pause:
                    await asyncio.sleep(pause)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
        code = (await call.code()).name
        self.codes[code] += 1
        self.received += sum(len(ids) for ids in heard.ids)
        if code not in allowed:
            raise Wrong(f"{code}, {await call.details()}")
        if code in ("OK", "INTERNAL") or heard.messages:
            self.accepted.append(request.request_id)
        heard.check(code)
        if code == "INTERNAL" and "its log knows it as" not in (await call.details() or ""):
            raise Wrong("INTERNAL without an id")
        if code == "RESOURCE_EXHAUSTED":
            trailers = dict(await call.trailing_metadata() or ())
            if "grpc-retry-pushback-ms" not in trailers:
                raise Wrong("refused without a word on when to come back")
        return code


class Heard:
    """What one call has said, checked as it comes."""

    def __init__(self, request: pb.GenerateRequest) -> None:
        self.n = max(request.sampling.n, 1)
        self.messages = 0
        self.ids: list[list[int]] = [[] for _ in range(self.n)]
        self.finished: dict[int, pb.Finished] = {}
        self._resumed = len(request.resume_token_ids)
        self._echo = [*request.token_ids.ids, EOS]
        self._ends = not request.sampling.ignore_eos

    def take(self, message: pb.GenerateResponse) -> None:
        """The next message."""
        kind = message.WhichOneof("event")
        if (kind == "started") != (self.messages == 0):
            raise Wrong(f"message {self.messages} is {kind}")
        self.messages += 1
        if kind == "delta":
            delta = message.delta
            if delta.index in self.finished:
                raise Wrong("a delta after the end")
            self._add(delta.index, delta.token_ids)
        elif kind == "finished":
            index = message.finished.index
            if index in self.finished:
                raise Wrong(f"index {index} has ended twice")
            self.finished[index] = message.finished

    def _add(self, index: int, ids: Any) -> None:
        got = self.ids[index]
        for token in ids:
            expected = self._echo[(self._resumed + len(got)) % len(self._echo)]
            if token != expected:
                raise Wrong(f"token {len(got)} is {token}, not {expected}")
            got.append(token)

    def check(self, code: str) -> None:
        """The whole, once the status is known."""
        ended = code == "OK" or (code == "INTERNAL" and self.messages)
        if ended and set(self.finished) != set(range(self.n)):
            raise Wrong(f"{code} with {len(self.finished)} ends of {self.n}")
        for index, finished in self.finished.items():
            if finished.usage.completion_tokens != len(self.ids[index]):
                raise Wrong("the usage is not what came")
            if code == "OK" and finished.reason not in (
                pb.FINISH_REASON_STOP,
                pb.FINISH_REASON_LENGTH,
            ):
                raise Wrong(f"OK, and an end by {finished.reason}")


# -------------------------------------------------------------------- the kinds of call

FAULTS = {"INTERNAL"}  # the device has faults; each is to be told as such
FULL = {"RESOURCE_EXHAUSTED"}


async def whole(client: Client, request_id: str) -> None:
    await client.read(client.request(request_id), {"OK"} | FAULTS | FULL)


async def siblings(client: Client, request_id: str) -> None:
    n = client.chance.randint(2, 4)
    await client.read(client.request(request_id, n=n), {"OK"} | FAULTS | FULL)


async def with_logprobs(client: Client, request_id: str) -> None:
    await client.read(client.request(request_id, logprobs=2), {"OK"} | FAULTS | FULL)


async def with_stop(client: Client, request_id: str) -> None:
    request = client.request(request_id, stop=["e", "th", "zzzz"], max_tokens=80)
    request.ids_only = False
    await client.read(request, {"OK"} | FAULTS | FULL)


async def resumed(client: Client, request_id: str) -> None:
    request = client.request(request_id, max_tokens=80)
    held = client.chance.randrange(len(request.token_ids.ids) + 2)
    request.resume_token_ids.extend([*request.token_ids.ids, EOS][:held])
    await client.read(request, {"OK"} | FAULTS | FULL)


async def cancelled(client: Client, request_id: str) -> None:
    request = client.request(request_id, max_tokens=300, ignore_eos=True)
    await client.read(
        request,
        {"OK", "CANCELLED"} | FAULTS | FULL,
        leave=lambda call: call.cancel(),
        leave_after=client.chance.choice((0, 1, 1, 2, 5, 20)),
    )


async def late(client: Client, request_id: str) -> None:
    request = client.request(request_id, max_tokens=300, ignore_eos=True)
    timeout = client.chance.choice((0.001, 0.005, 0.02, 0.05, 0.1))
    await client.read(
        request, {"OK", "DEADLINE_EXCEEDED", "CANCELLED"} | FAULTS | FULL, timeout=timeout
    )


async def slow(client: Client, request_id: str) -> None:
    request = client.request(request_id, max_tokens=200, ignore_eos=True)
    await client.read(request, {"OK"} | FAULTS | FULL, pause=0.03)


async def hung_up(client: Client, request_id: str) -> None:
    """The connection goes, not the call."""
    channel = grpc.aio.insecure_channel(
        client.address, options=[("grpc.use_local_subchannel_pool", 1)]
    )
    request = client.request(request_id, max_tokens=300, ignore_eos=True)
    call = pb_grpc.InferenceServiceStub(channel).Generate(request)
    heard = Heard(request)
    try:
        async for message in call:
            heard.take(message)
            if heard.messages == 2:
                break
    except grpc.aio.AioRpcError as error:
        if error.code().name not in FAULTS | FULL:
            raise Wrong(str(error.code())) from error
    await channel.close()


async def malformed(client: Client, request_id: str) -> None:
    del request_id
    raw = client.chance.randbytes(client.chance.randint(1, 60))
    call = client.channel.unary_stream(f"{SERVICE}/Generate")(b"\xff" + raw)
    await client_refusal(client, call, {"INVALID_ARGUMENT"})


async def impossible(client: Client, request_id: str) -> None:
    request = client.request(request_id)
    match client.chance.randrange(5):
        case 0:
            request.sampling.top_p = 7.0
        case 1:
            request.sampling.max_tokens = 1 << 30
        case 2:
            request.token_ids.ids.append(1 << 31)
        case 3:
            request.request_id = "not allowed/at all"
        case _:
            request.model = "another"
    call = client.stub.Generate(request)
    await client_refusal(client, call, {"INVALID_ARGUMENT", "NOT_FOUND"} | FULL)


async def oversized(client: Client, request_id: str) -> None:
    request = client.request(request_id)
    request.text = "x" * (5 << 20)
    await client_refusal(client, client.stub.Generate(request), FULL)


async def no_method(client: Client, request_id: str) -> None:
    del request_id
    call = client.channel.unary_stream(f"{SERVICE}/Nothing")(b"")
    await client_refusal(client, call, {"UNIMPLEMENTED"})


async def client_refusal(client: Client, call: Any, allowed: Codes) -> None:
    try:
        async for _ in call:
            raise Wrong("an answer to what makes no sense")
    except grpc.aio.AioRpcError:
        pass
    code = (await call.code()).name
    client.codes[code] += 1
    if code not in allowed:
        raise Wrong(f"{code}: {await call.details()}")


async def stats(client: Client, request_id: str) -> None:
    del request_id
    answer = await client.stub.Stats(pb.StatsRequest(include_block_map=True))
    if len(answer.cache.block_map) != answer.cache.blocks_total:
        raise Wrong("a block map of another size")


Kind = Callable[[Client, str], Coroutine[Any, Any, None]]
CALLS: dict[str, tuple[Kind, float]] = {
    "whole": (whole, 30),
    "siblings": (siblings, 5),
    "logprobs": (with_logprobs, 3),
    "stop string": (with_stop, 6),
    "resumed": (resumed, 4),
    "cancelled": (cancelled, 20),
    "deadline": (late, 12),
    "slow reader": (slow, 2),
    "hung up": (hung_up, 3),
    "malformed": (malformed, 4),
    "impossible": (impossible, 5),
    "oversized": (oversized, 0.3),
    "no method": (no_method, 0.7),
    "stats": (stats, 3),
}
KINDS = {name: kind for name, (kind, _) in CALLS.items()}
WEIGHTS = tuple(weight for _, weight in CALLS.values())


async def main() -> None:
    address, seed, calls, parallel = sys.argv[1], *map(int, sys.argv[2:])
    client = Client(address, seed)
    await client.run(calls, parallel)
    print(
        json.dumps(
            {
                "codes": client.codes,
                "kinds": client.kinds,
                "accepted": client.accepted,
                "received": client.received,
                "wrong": client.wrong,
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
