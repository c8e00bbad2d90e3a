"""One client process of the serving benchmark: sends its share of a work, all at once.

Speaks JSON lines: reads {"work", "share", "of"}, says ready with its requests built, reads
{"start": monotonic seconds}, says what came of each stream. Imports the stubs, not the engine.

    python benchmarks/serving_client.py ADDRESS
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import grpc.aio
from serving_work import Ask, Work
from thread_times import ThreadTimes

from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc

TIMER = 0.003  # seconds by which a loop's timer may be late


def request(ask: Ask, salt: str) -> pb.GenerateRequest:
    """A request as it is sent: ids in, text and ids out."""
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=ask.prompt),
        cache_salt=salt,
        sampling=pb.SamplingParams(
            temperature=ask.temperature, max_tokens=ask.max_tokens, ignore_eos=True, seed=1
        ),
    )


async def stream(stub: Any, messages: list[pb.GenerateRequest]) -> list[dict[str, Any]]:
    """Calls one right after another."""
    return [await call(stub, message) for message in messages]


async def call(stub: Any, message: pb.GenerateRequest) -> dict[str, Any]:
    """Read one call to its end."""
    tokens, characters, times, began = 0, 0, [], time.monotonic()
    async for response in stub.Generate(message):
        if response.HasField("delta"):
            times.append(time.monotonic())
            delta = response.delta
            tokens += len(delta.token_ids)
            characters += len(delta.text)
        elif response.HasField("finished"):
            assert response.finished.usage.completion_tokens == tokens
    ended = time.monotonic()
    return {
        "tokens": tokens, "characters": characters, "began": began, "times": times, "ended": ended,
    }  # fmt: skip


async def main() -> None:
    loop = asyncio.get_running_loop()
    options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of this process's own
    async with grpc.aio.insecure_channel(sys.argv[1], options=options) as channel:
        await channel.channel_ready()
        stub = pb_grpc.InferenceServiceStub(channel)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            job = json.loads(line)
            work = Work(**job["work"])
            asks, mine = work.asks(), range(job["share"], work.streams, job["of"])
            rows = [asks[i :: work.streams] for i in mine]  # of each stream
            messages = [[request(ask, work.salt) for ask in row] for row in rows]
            print(json.dumps({"ready": True}), flush=True)
            start = json.loads(await loop.run_in_executor(None, sys.stdin.readline))["start"]
            threads = ThreadTimes()
            await asyncio.sleep(start - time.monotonic() - TIMER)
            while time.monotonic() < start:
                pass
            told = await asyncio.gather(*(stream(stub, row) for row in messages))
            calls = [got for row in told for got in row]
            if [got["tokens"] for got in calls] != [ask.max_tokens for row in rows for ask in row]:
                raise RuntimeError("other numbers of tokens came than were asked for")
            print(json.dumps({"calls": calls, "cpu": threads.shares()}), flush=True)


def loop_factory() -> Any:
    """uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main())
