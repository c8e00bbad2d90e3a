"""Many streams at once, slow readers, and clients that die."""

import asyncio
import contextlib
import random
import signal
import sys
from typing import Any

import grpc
from support.fake_engine import EOS, Device
from support.harness import ask, first, generate, read, run, serving


def test_200_streams_of_mixed_lengths_all_complete_and_every_count_agrees() -> None:
    async def test() -> None:
        chance = random.Random(5)
        prompts = [
            [chance.randrange(300, 4000) for _ in range(chance.randint(1, 60))] for _ in range(200)
        ]
        async with serving(engine={"num_blocks": 600}) as running:
            answers = await asyncio.gather(*(generate(running, ask(p)) for p in prompts))
            for prompt, answer in zip(prompts, answers, strict=True):
                assert answer.code is grpc.StatusCode.OK
                assert answer.ids() == [*prompt, EOS]
                assert answer.finished[0].usage.completion_tokens == len(prompt) + 1
            stats = await running.idle()
            received = sum(len(a.ids()) for a in answers)
            assert stats.tokens.delivered == received
            assert stats.requests.finished_stop == 200
            assert sum(stats.queue_time_seconds.counts) == 200

    run(test)


def test_a_reader_that_sleeps_holds_nobody_up() -> None:
    async def test() -> None:
        async with serving(engine={"num_blocks": 600}) as running:
            request = ask([300], max_tokens=2000, ignore_eos=True)
            sleeper = running.stub.Generate(request)
            await first(sleeper)
            answers = await asyncio.gather(*(generate(running, ask([301] * 20)) for _ in range(20)))
            assert all(a.code is grpc.StatusCode.OK for a in answers)
            await running.until(lambda s: s.requests.running == 0)
            answer = await read(sleeper)
            assert len(answer.ids()) == 2000
            assert answer.code is grpc.StatusCode.OK

    run(test)


CLIENT = """
import sys, grpc
from quire.v1 import inference_pb2 as pb, inference_pb2_grpc as g
stub = g.InferenceServiceStub(grpc.insecure_channel(sys.argv[1]))
request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[300]))
request.sampling.max_tokens = 2000
request.sampling.ignore_eos = True
for message in stub.Generate(request):
    print("got", flush=True)
"""


def test_a_client_killed_in_mid_stream_gives_everything_back() -> None:
    async def test() -> None:
        device = Device(step_seconds=0.005)
        async with serving(device) as running:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", CLIENT, f"127.0.0.1:{running.server.port}"),
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            assert await process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            await process.wait()
            stats = await running.until(lambda s: s.requests.finished_cancelled == 1)
            assert stats.requests.accepted == 1
            await running.idle()
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.OK

    run(test)


def test_random_cancels_and_deadlines_leave_nothing_behind() -> None:
    async def one(running: Any, chance: random.Random) -> None:
        request = ask(
            [300] * chance.randint(1, 40),
            max_tokens=chance.randint(1, 300),
            ignore_eos=True,
            n=chance.randint(1, 3),
        )
        kind = chance.choice(["whole", "cancel", "deadline", "at once"])
        call = running.stub.Generate(request, timeout=0.05 if kind == "deadline" else None)
        if kind == "cancel":
            await first(call)
        if kind in ("cancel", "at once"):
            call.cancel()
        answer = await read(call)
        if kind == "whole":
            assert answer.code is grpc.StatusCode.OK
            for index in range(request.sampling.n):
                assert len(answer.ids(index)) == request.sampling.max_tokens

    async def quiet(running: Any, chance: random.Random) -> None:
        # What a cancelled or late call gives its own reader.
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await one(running, chance)

    async def test() -> None:
        chance = random.Random(11)
        async with serving(Device(step_seconds=0.001), engine={"num_blocks": 100}) as running:
            for _ in range(4):
                await asyncio.gather(*(quiet(running, chance) for _ in range(40)))
            stats = await running.idle()
            requests = stats.requests
            ended = requests.finished_length + requests.finished_cancelled
            assert requests.accepted == ended
            assert requests.finished_cancelled > 0 < requests.finished_length
            answer = await generate(running, ask([300, 301]))
            assert answer.ids() == [300, 301, EOS]

    run(test)
