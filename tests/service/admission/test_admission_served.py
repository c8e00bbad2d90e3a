"""Admission over the wire."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from support.fake_engine import Device
from support.full_queue import EXHAUSTED, fill
from support.harness import ask, generate, read, run, serving


def test_a_call_whose_deadline_cannot_be_kept_is_told_so_and_when() -> None:
    async def test() -> None:
        device = Device(step_seconds=0.01)
        async with serving(device, engine={"max_num_seqs": 1}) as running:
            for _ in range(3):  # about 0.3 s each: durations are learned
                await generate(running, ask(list(range(300, 330)), max_tokens=30))
            device.hold()
            calls = [running.stub.Generate(ask([300], max_tokens=1)) for _ in range(30)]
            for call in calls:
                await call.initial_metadata()
            answer = await generate(running, ask([300]), timeout=1.0)
            assert answer.code is EXHAUSTED
            assert "deadline" in answer.details
            pushback = int(answer.trailing["grpc-retry-pushback-ms"])
            info = answer.rich(error_details_pb2.RetryInfo)
            assert pushback >= 100
            delay = info.retry_delay.seconds + info.retry_delay.nanos / 1e9
            assert delay == pytest.approx(pushback / 1e3, abs=1e-3)
            assert answer.rich(error_details_pb2.ErrorInfo).reason == "QUEUE_TOO_LONG"
            patient = running.stub.Generate(ask([300], max_tokens=1), timeout=300.0)
            await patient.initial_metadata()
            device.release()
            codes = [(await read(call)).code for call in [*calls, patient]]
            assert codes == [grpc.StatusCode.OK] * 31
            assert running.server._admission.waiting == 0

    run(test)


def test_a_refusal_comes_before_the_prompt_is_looked_at() -> None:
    async def test() -> None:
        device = Device()
        async with serving(device, engine={"max_num_seqs": 1}, max_waiting=1) as running:
            device.hold()
            calls, refused = await fill(running, ask([300]))
            assert refused.code is EXHAUSTED
            invalid = ask([1 << 31])
            assert (await generate(running, invalid)).code is EXHAUSTED
            device.release()
            await asyncio.gather(*(read(call) for call in calls))
            assert (await generate(running, invalid)).code is grpc.StatusCode.INVALID_ARGUMENT

    run(test)


def test_waiting_tokens_over_the_wire() -> None:
    async def test() -> None:
        device = Device()
        async with serving(device, engine={"max_num_seqs": 1}, max_waiting_tokens=50) as running:
            device.hold()
            calls, refused = await fill(running, ask(list(range(300, 345)), max_tokens=1))
            assert refused.code is EXHAUSTED
            assert "max_waiting_tokens = 50" in refused.details
            assert calls
            device.release()
            for call in calls:
                await read(call)
            await running.idle()
            assert running.server._admission.waiting_tokens == 0

    run(test)
