"""Many streams at once, slow readers, clients that die, and messages that make no sense."""

import asyncio
import contextlib
import random
import signal
import sys
from typing import Any

import grpc
from fake_engine import EOS, Device
from harness import ask, first, generate, read, run, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.v1 import inference_pb2 as pb


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
            assert sum(stats.queue_time.counts) == 200

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
            stats = await running.until(lambda s: s.requests.finished_aborted == 1)
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
            ended = requests.finished_length + requests.finished_aborted
            assert requests.accepted == ended
            assert requests.finished_aborted > 0 < requests.finished_length
            answer = await generate(running, ask([300, 301]))
            assert answer.ids() == [300, 301, EOS]

    run(test)


# ------------------------------------------------------------ messages that make no sense

floats = st.floats(width=32) | st.sampled_from([0.0, 1.0, 0.5])
counts = st.integers(0, 2**32 - 1) | st.integers(0, 70)
words = st.text(max_size=20) | st.sampled_from(["user", "assistant", "tool", "<|im_start|>", "a b"])
ids = st.lists(st.integers(0, 5000) | st.integers(0, 2**32 - 1), max_size=20)
plain = st.lists(st.integers(0, 4095), min_size=1, max_size=20)


def maybe(**fields: Any) -> Any:
    return st.fixed_dictionaries({}, optional=fields)


sampling = maybe(
    temperature=floats, top_p=floats, top_k=counts, min_p=floats, repetition_penalty=floats,
    presence_penalty=floats, frequency_penalty=floats, seed=st.integers(0, 2**64 - 1),
    n=counts, max_tokens=counts, min_tokens=counts, stop=st.lists(words, max_size=18),
    include_stop=st.booleans(), stop_token_ids=ids, ignore_eos=st.booleans(), logprobs=counts,
)  # fmt: skip
structs = st.dictionaries(words, words | st.booleans() | st.lists(words, max_size=2), max_size=2)
calls = st.lists(st.builds(lambda n: pb.ToolCall(name=n), words), max_size=2)
message = st.builds(
    lambda f: pb.ChatMessage(**f), maybe(role=words, content=words, name=words, tool_calls=calls)
)
tools = st.lists(st.builds(lambda n: pb.Tool(name=n), words), max_size=2)


def make_chat(fields: dict[str, Any], args: dict[str, Any]) -> pb.Chat:
    chat = pb.Chat(**fields)
    if args:
        chat.template_args.update(args)
    return chat


chats = st.builds(
    make_chat,
    maybe(
        messages=st.lists(message, max_size=4), tools=tools, add_generation_prompt=st.booleans(),
        continue_final_message=st.booleans(), allow_special_tokens=st.booleans(),
    ),
    structs,
)  # fmt: skip


def make_request(fields: dict[str, Any], prompt: Any, params: dict[str, Any]) -> pb.GenerateRequest:
    request = pb.GenerateRequest(**fields, sampling=pb.SamplingParams(**params))
    if isinstance(prompt, str):
        request.text = prompt
    elif isinstance(prompt, list):
        request.token_ids.ids.extend(prompt)
    elif prompt is not None:
        request.chat.CopyFrom(prompt)
    return request


requests = st.builds(
    make_request,
    maybe(
        request_id=words, priority=st.integers(-(2**31), 2**31 - 1), cache_salt=words,
        model=st.sampled_from(["", "fake", "other"]), ids_only=st.booleans(), resume_token_ids=ids,
    ),
    st.none() | words | ids | plain | chats,
    sampling,
)  # fmt: skip

FINE = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}


def test_fuzzed_messages_never_bring_the_server_down() -> None:
    """2,000 messages, 20 at a time: random fields, and random bytes put over encoded messages."""

    async def test() -> None:
        async with serving(engine={"num_blocks": 40}, max_waiting=10_000) as running:
            raw_call = running.channel.unary_stream("/quire.v1.InferenceService/Generate")
            seen: set[str] = set()

            async def send(raw: bytes) -> None:
                call = raw_call(raw, timeout=30)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    async for _ in call:
                        pass
                code = (await call.code()).name
                seen.add(code)
                assert code in FINE, (code, await call.details(), raw)

            loop = asyncio.get_running_loop()
            for batch in await loop.run_in_executor(None, fuzzed, 2000, 20):
                await asyncio.gather(*(send(raw) for raw in batch))
            assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= seen
            await running.idle()
            assert running.server.ledger.open == 0
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.OK

    run(test)


def fuzzed(count: int, size: int) -> list[list[bytes]]:
    """Encoded messages, in batches, from hypothesis' own generator; the same at each run."""
    made: list[bytes] = []

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(requests, st.binary(max_size=4), st.integers(0, 200), st.integers(0, 3))
    def collect(request: pb.GenerateRequest, noise: bytes, at: int, kind: int) -> None:
        if request.sampling.n > 3 and request.sampling.n <= 64:
            request.sampling.n = 3
        raw = request.SerializeToString()
        made.append(raw[:at] + noise + raw[at + len(noise) :] if kind == 0 else raw)

    collect()
    assert len(made) >= count
    return [made[i : i + size] for i in range(0, len(made), size)]
