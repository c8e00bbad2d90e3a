"""What goes wrong around and inside a server that is at work, and who has to notice."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import torch
from support.fake_engine import EOS, Device
from support.harness import SERVING, Answer, ask, generate, health, read, run, serving
from support.patience import PATIENCE
from support.storm import FaultyDevice, Poison

from quire.engine.scheduling.plan import StepPlan, StepResult
from quire.engine.scheduling.request import Request
from quire.service.app import ports
from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc

# ------------------------------------------------------------ the clients' side


class Wire:
    """A connection through which everything passes, until it is cut without a word."""

    def __init__(self) -> None:
        self.port = 0
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """From now on nothing passes, and nobody is told."""
        self._open.clear()

    @contextlib.asynccontextmanager
    async def to(self, port: int) -> AsyncIterator["Wire"]:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            for pair in ((reader, far_writer), (far_reader, writer)):
                self._tasks.add(asyncio.create_task(self._pass_on(*pair)))

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                await self._open.wait()
                writer.write(data)
                await writer.drain()


def test_a_connection_that_dies_without_a_word_is_found_by_its_silence() -> None:
    """While nothing is said to it; what is said and never acknowledged, TCP itself notices."""

    async def test() -> None:
        async with serving(keepalive_seconds=0.3) as running:
            running.device.hold()
            async with Wire().to(running.server.port) as wire:
                channel = grpc.aio.insecure_channel(f"127.0.0.1:{wire.port}")
                call = pb_grpc.InferenceServiceStub(channel).Generate(ask([300]))
                await running.until(lambda s: s.requests.running == 1)
                wire.cut()
                await running.until(lambda s: s.requests.finished_cancelled == 1)
                running.device.release()
                await running.idle()
                call.cancel()
                await channel.close()

    run(test)


def test_a_client_that_is_silent_and_there_keeps_its_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long this machine takes to answer a ping."""
    options, long = ports.channel_options, round(1000 * PATIENCE)
    answered = {"grpc.keepalive_timeout_ms": long, "grpc.http2.ping_timeout_ms": long}
    monkeypatch.setattr(
        ports, "channel_options", lambda *given: [*(dict(options(*given)) | answered).items()]
    )

    async def test() -> None:
        async with serving(keepalive_seconds=0.1) as running:
            running.device.hold()
            call = asyncio.create_task(generate(running, ask([300, 301])))
            await running.until(lambda s: s.requests.running == 1)
            await asyncio.sleep(0.5)  # several pings, all answered
            running.device.release()
            assert (await call).ids() == [300, 301, EOS]

    run(test)


def test_in_a_flood_of_calls_each_has_a_status_and_stats_and_probes_still_answer() -> None:
    async def test() -> None:
        async with serving(engine={"max_num_seqs": 8}, max_waiting=16) as running:
            running.device.hold()
            flood = [asyncio.create_task(generate(running, ask([300]))) for _ in range(500)]
            stats = await running.until(lambda s: s.requests.refused["RESOURCE_EXHAUSTED"] > 400)
            assert stats.requests.accepted <= 8 + 16
            assert await health(running, "") == SERVING
            running.device.release()
            answers = await asyncio.gather(*flood)
            codes = {answer.code for answer in answers}
            assert codes == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
            for answer in answers:
                if answer.code is grpc.StatusCode.OK:
                    assert answer.ids() == [300, EOS]
                else:
                    assert int(answer.trailing["grpc-retry-pushback-ms"]) > 0
            stats = await running.idle()
            served = sum(answer.code is grpc.StatusCode.OK for answer in answers)
            assert stats.requests.accepted == stats.requests.finished_stop == served

    run(test)


# ------------------------------------------------------------ one request, one step


class Chosen(Device):
    """Does something to the result of one chosen step."""

    def __init__(self, at: int, change: Any) -> None:
        super().__init__()
        self._at = at
        self._change = change

    def execute(self, plan: StepPlan) -> Any:
        pending = super().execute(plan)
        plain, at = pending.wait, plan.step_id == self._at

        def wait() -> StepResult:
            result = plain()
            if at:
                self._change(result)
            return result

        pending.wait = wait  # type: ignore[method-assign]
        return pending


def poison(result: StepResult) -> None:
    result.tokens[1] = Poison(result.tokens[1])


def not_a_token(result: StepResult) -> None:
    result.tokens[1] = [-1]


@pytest.mark.parametrize("change", [poison, not_a_token])
@pytest.mark.parametrize("overlap", [True, False])
def test_a_fault_in_one_request_is_its_alone(change: Any, overlap: bool) -> None:
    async def test() -> None:
        device = Chosen(5, change)
        async with serving(device, engine={"overlap": overlap}) as running:
            device.hold()
            prompts = [[300 + i] * 10 for i in range(4)]
            calls = [running.stub.Generate(ask(prompt)) for prompt in prompts]
            await running.until(lambda s: s.requests.accepted == 4)
            device.release()
            answers = await asyncio.gather(*(read(call) for call in calls))
            bad = [a for a in answers if a.code is not grpc.StatusCode.OK]
            assert len(bad) == 1
            told_as_a_fault(bad[0])
            for prompt, answer in zip(prompts, answers, strict=True):
                if answer is not bad[0]:
                    assert answer.ids() == [*prompt, EOS]
            stats = await running.idle()
            assert stats.requests.finished_error == 1
            assert stats.requests.finished_stop == 3
            assert stats.steps.failed == 0

    run(test)


def told_as_a_fault(answer: Answer) -> None:
    assert answer.code is grpc.StatusCode.INTERNAL
    assert "its log knows it as" in answer.details
    (finished,) = answer.finished
    assert finished.reason == pb.FINISH_REASON_ERROR
    assert finished.usage.completion_tokens == len(answer.ids())


def test_one_completion_of_several_may_fail_and_the_others_go_on() -> None:
    async def test() -> None:
        async with serving(Chosen(6, poison)) as running:
            answer = await generate(running, ask([300] * 10, n=3))
            assert answer.code is grpc.StatusCode.INTERNAL
            reasons = sorted(f.reason for f in answer.finished)
            assert reasons == [pb.FINISH_REASON_STOP] * 2 + [pb.FINISH_REASON_ERROR]
            await running.idle()

    run(test)


def test_a_request_that_cannot_be_queued_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with serving() as running:

            def fails(spec: Any, *arguments: Any) -> Request:
                if spec.prompt_token_ids[0] == 999:
                    raise MemoryError
                return Request(spec, *arguments)

            monkeypatch.setattr("quire.engine.scheduling.scheduler_state.Request", fails)
            bad, good = await asyncio.gather(
                generate(running, ask([999, 300], n=2)), generate(running, ask([300]))
            )
            assert bad.code is grpc.StatusCode.INTERNAL and not bad.order
            assert good.ids() == [300, EOS]
            stats = await running.idle()
            assert stats.requests.finished_error == 2

    run(test)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), MemoryError(), KeyError("x")])
def test_a_step_that_runs_out_of_memory_ends_its_requests_and_the_engine_goes_on(
    error: Exception,
) -> None:
    async def test() -> None:
        device = Device()
        async with serving(device) as running:
            device.hold()
            calls = [running.stub.Generate(ask([300 + i] * 5)) for i in range(3)]
            await running.until(lambda s: s.requests.accepted == 3)
            device.fail = error
            device.release()
            for answer in await asyncio.gather(*(read(call) for call in calls)):
                assert answer.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.OK)
            stats = await running.idle()
            assert stats.requests.finished_error >= 1 <= stats.steps.failed
            assert (await generate(running, ask([300]))).ids() == [300, EOS]

    run(test)


def test_what_was_said_before_a_step_failed_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A resumed request that holds its end already is answered in the turn whose step fails."""

    async def test() -> None:
        device = FaultyDevice(1)
        async with serving(device) as running:
            device.hold()
            other = asyncio.create_task(generate(running, ask([300] * 4)))
            await running.until(lambda s: s.requests.running == 1)
            whole = asyncio.create_task(generate(running, ask([301], resume_token_ids=[301, EOS])))
            await running.until(lambda s: s.requests.accepted == 2)
            device.fail = RuntimeError("spilled coffee")
            device.release()
            answer = await whole
            assert answer.code is grpc.StatusCode.OK
            assert answer.finished[0].reason == pb.FINISH_REASON_STOP
            assert (await other).code is grpc.StatusCode.INTERNAL

    run(test)
    assert "a step failed" in caplog.text
