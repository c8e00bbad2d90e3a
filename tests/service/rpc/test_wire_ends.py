"""How calls end over a real channel, whatever ends: they, a step, the engine or the server."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from support.fake_engine import VOCAB_SIZE, Device, DeviceLost
from support.harness import (
    NOT_SERVING,
    SERVING,
    Answer,
    ask,
    first,
    generate,
    health,
    overdue,
    read,
    run,
    serving,
)

from quire.v1 import inference_pb2 as pb

INVALID = grpc.StatusCode.INVALID_ARGUMENT
LONG = {"max_tokens": 500, "ignore_eos": True}


def test_malformed_and_oversized_messages_are_refused() -> None:
    async def test() -> None:
        async with serving() as running:
            call = running.channel.unary_stream("/quire.v1.InferenceService/Generate")
            answer = await read(call(b"\xff\xff\xff"))
            assert answer.code is INVALID
            big = await read(call(bytes(5 << 20)))
            assert big.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            stats = running.channel.unary_unary("/quire.v1.InferenceService/Stats")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stats(b"\xff")
            assert caught.value.code() is INVALID

    run(test)


def test_cancel_and_deadline_give_the_blocks_back() -> None:
    async def test() -> None:
        device = Device(step_seconds=0.002)
        async with serving(device) as running:
            request = ask([300] * 40, max_tokens=1500, ignore_eos=True)
            call = running.stub.Generate(request)
            await first(call)
            await first(call)
            call.cancel()
            stats = await running.until(lambda s: s.requests.finished_cancelled == 1)
            before = stats.steps.total
            stats = await running.idle()
            assert stats.steps.total - before <= 3
            ledger = running.server.ledger
            late = await overdue(
                lambda seconds: running.stub.Generate(request, timeout=seconds),
                lambda: ledger.accepted > 1,
            )
            assert (await read(late)).code is grpc.StatusCode.DEADLINE_EXCEEDED
            stats = await running.until(lambda s: s.requests.finished_cancelled > 1)
            before = stats.steps.total
            stats = await running.idle()
            assert stats.steps.total - before <= 3
            tokens = stats.tokens
            assert tokens.delivered + tokens.discarded >= tokens.generated - 4

    run(test)


def test_a_failed_step_ends_its_requests_with_an_id_and_the_engine_goes_on() -> None:
    async def test() -> None:
        device = Device()
        async with serving(device) as running:
            device.hold()
            request = ask([300], max_tokens=1000, ignore_eos=True)
            calls = [running.stub.Generate(request)]
            assert (await first(calls[0])).HasField("started")
            calls += [running.stub.Generate(request) for _ in range(2)]
            device.fail = ValueError("a bad step")
            device.release()
            answers = [await read(call) for call in calls]
            failed = [a for a in answers if a.code is grpc.StatusCode.INTERNAL]
            assert failed
            for answer in failed:
                assert answer.finished[0].reason == pb.FINISH_REASON_ERROR
                assert "log knows it as" in answer.details
                assert "a bad step" not in answer.details
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.OK
            stats = await running.idle()
            assert stats.requests.finished_error == len(failed)
            assert stats.steps.failed >= 1

    run(test)


def test_a_step_that_fails_before_anything_was_said_gives_a_status_alone() -> None:
    async def test() -> None:
        device = Device()
        async with serving(device, engine={"overlap": False}) as running:
            device.fail = ValueError("first step")
            answer = await generate(running, ask([300]))
            assert answer.code is grpc.StatusCode.INTERNAL
            assert answer.order in ([], ["started", "finished"])

    run(test)


def test_a_dead_engine_ends_every_stream_and_is_not_ready() -> None:
    async def test() -> None:
        device = Device()
        async with serving(device) as running:
            watch = asyncio.create_task(running.server.wait_dead())
            device.hold()
            call = running.stub.Generate(ask([300], **LONG))
            assert (await first(call)).HasField("started")
            device.fail = DeviceLost()
            device.release()
            answer: Answer = await read(call)
            assert answer.code is grpc.StatusCode.UNAVAILABLE
            assert answer.finished[0].reason == pb.FINISH_REASON_ERROR
            await watch
            assert await health(running) == NOT_SERVING
            again = await generate(running, ask([300]))
            assert again.code is grpc.StatusCode.UNAVAILABLE
            assert again.rich(error_details_pb2.ErrorInfo).reason == "ENGINE_DEAD"
            assert running.server.ledger.open == 0

    run(test)


def test_while_loading_the_port_is_open_and_not_ready() -> None:
    async def test() -> None:
        async with serving(load=False) as running:
            assert await health(running) == NOT_SERVING
            assert await health(running, "liveness") == SERVING
            answer = await generate(running, ask([300]))
            assert answer.code is grpc.StatusCode.UNAVAILABLE
            assert answer.rich(error_details_pb2.ErrorInfo).reason == "LOADING"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.stats()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await running.server.load(VOCAB_SIZE)
            for name in ("", "quire.v1.InferenceService", "liveness"):
                assert await health(running, name) == SERVING
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.OK

    run(test)


def test_draining_refuses_new_calls_and_lets_open_ones_end() -> None:
    async def test() -> None:
        device = Device()
        async with serving(device, drain_seconds=30) as running:
            device.hold()
            call = running.stub.Generate(ask([300], max_tokens=100, ignore_eos=True))
            await first(call)
            drain = asyncio.create_task(running.server.drain())
            while await health(running) == SERVING:
                await asyncio.sleep(0.005)
            assert await health(running, "liveness") == SERVING
            refused = await generate(running, ask([300]))
            assert refused.code is grpc.StatusCode.UNAVAILABLE
            assert not drain.done()
            device.release()
            answer = await read(call)
            assert answer.code is grpc.StatusCode.OK
            assert len(answer.ids()) == 100
            await drain

    run(test)


def test_a_stream_that_outlives_the_drain_is_aborted_and_told() -> None:
    async def test() -> None:
        device = Device(step_seconds=0.01)
        async with serving(device, drain_seconds=0.1) as running:
            call = running.stub.Generate(ask([300], max_tokens=2000, ignore_eos=True))
            await first(call)
            await running.server.drain()
            stop = asyncio.create_task(running.server.stop())
            answer = await read(call)
            assert answer.code is grpc.StatusCode.UNAVAILABLE
            assert answer.finished[0].reason == pb.FINISH_REASON_CANCELLED
            assert answer.finished[0].usage.completion_tokens == len(answer.ids())
            await stop
            assert running.server.ledger.open == 0

    run(test)
