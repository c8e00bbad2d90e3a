"""What goes wrong around and inside a server that is at work, and who has to notice."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support import faulty_server, programs
from support.fake_engine import EOS, VOCAB_SIZE, Device
from support.harness import Answer, Running, ask, generate, read, run, serving
from support.patience import PATIENCE
from support.storm import FaultyDevice, Poison

from quire.engine.client.in_thread import stack_of
from quire.engine.errors import EngineDeadError
from quire.engine.scheduling.plan import StepPlan, StepResult
from quire.engine.scheduling.request import Request
from quire.service.app import ports
from quire.service.app.watchdog import Verdict, Watchdog
from quire.service.rpc.constraints import Compiler
from quire.service.telemetry.metrics import QuireCollector, Sources
from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc

SERVER, SLOTS = Path(faulty_server.__file__), faulty_server.SLOTS
LONG = {"max_tokens": 1500, "ignore_eos": True}
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


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
            assert await probe(running, "") == SERVING
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

            monkeypatch.setattr("quire.engine.scheduling.roster.Request", fails)
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


# ------------------------------------------------------------ a step that hangs


def test_the_watchdog_counts_its_looks() -> None:
    step: float | None = None
    dog = Watchdog(lambda: step, 8.0, 4.0)
    assert dog.interval == 1.0
    assert [dog.look() for _ in range(20)] == [Verdict.NOTHING] * 20  # idle
    for begin in range(100, 120):  # busy, each look another step
        step = begin
        assert dog.look() is Verdict.NOTHING
    step = 7.0
    looks = [dog.look() for _ in range(9)]
    assert looks == [Verdict.NOTHING] * 8 + [Verdict.HUNG] and dog.hung
    assert dog.look() is Verdict.NOTHING
    step = 8.0
    assert dog.look() is Verdict.RECOVERED and not dog.hung
    looks = [dog.look() for _ in range(12)]
    assert looks.index(Verdict.HUNG) == 7 and looks.index(Verdict.LOST) == 11


def test_without_a_second_bound_a_hung_step_is_waited_for() -> None:
    dog = Watchdog(lambda: 1.0, 4.0, 0.0)
    looks = [dog.look() for _ in range(1000)]
    assert looks.count(Verdict.HUNG) == 1 and Verdict.LOST not in looks


def test_a_stack_is_that_of_the_thread() -> None:
    ready, done = threading.Event(), threading.Event()

    def stands_here() -> None:
        ready.set()
        done.wait()

    thread = threading.Thread(target=stands_here)
    thread.start()
    ready.wait()
    assert "stands_here" in stack_of(thread.ident)
    done.set()
    thread.join()
    assert stack_of(thread.ident) == stack_of(None) == "the thread has ended"


async def probe(running: Running, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(running.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def until_probe(running: Running, service: str, status: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while await probe(running, service) != status:
            await asyncio.sleep(0.01)


def test_a_hung_step_is_told_to_the_probes_and_taken_back_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with serving(watchdog_seconds=0.2, watchdog_exit_seconds=0.0) as running:
            assert hung(running) == 0
            running.device.hold()
            call = asyncio.create_task(generate(running, ask([300])))
            await until_probe(running, "liveness", NOT_SERVING)
            await until_probe(running, "", NOT_SERVING)
            assert hung(running) == 1
            running.device.release()
            assert (await call).ids() == [300, EOS]
            await until_probe(running, "liveness", SERVING)
            await until_probe(running, "", SERVING)
            assert hung(running) == 0

    run(test)
    assert "a step hangs" in caplog.text
    assert "device.open.wait()" in caplog.text  # where the engine's thread stood


def hung(running: Running) -> float:
    """The metric, as it would be scraped."""
    watchdog = running.server._watchdog
    assert watchdog is not None
    sources = Sources(
        running.server.ledger,
        running.engine.stats,
        running.engine.step_times,
        lambda: watchdog.hung,
    )
    metrics = {metric.name: metric for metric in QuireCollector(sources).collect()}
    return float(metrics["quire_step_hung"].samples[0].value)


def test_a_step_that_hangs_for_good_ends_every_stream_and_the_engine() -> None:
    async def test() -> None:
        async with serving(watchdog_seconds=0.1, watchdog_exit_seconds=0.1) as running:
            running.device.hold()
            call = asyncio.create_task(generate(running, ask([300])))
            async with asyncio.timeout(PATIENCE):
                await running.server.wait_dead()
            answer = await call
            assert answer.code is grpc.StatusCode.UNAVAILABLE
            assert running.server.engine_abandoned
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.UNAVAILABLE

    run(test)


def test_an_engine_that_dies_before_all_is_read_ends_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, read_at_last = asyncio.Event(), threading.Event()

    async def test() -> None:
        loop = asyncio.get_running_loop()

        def vocabulary(_self: Compiler) -> None:
            loop.call_soon_threadsafe(reading.set)
            assert read_at_last.wait(PATIENCE)

        monkeypatch.setattr(Compiler, "vocabulary", vocabulary)
        async with serving(load=False) as running:
            loading = asyncio.create_task(running.server.load(VOCAB_SIZE))
            await reading.wait()
            running.engine.give_up()
            with pytest.raises(EngineDeadError):
                await loading
            read_at_last.set()

    run(test)


# ------------------------------------------------------------ the process


class Process:
    """A server of its own, with its fault."""

    def __init__(self, *words: str) -> None:
        self.process = programs.start(
            [sys.executable, str(SERVER), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert " on " in line, self.end()
        self.address = line.rsplit(" on ", 1)[1].strip()

    def end(self) -> tuple[int, str]:
        """Exit code and what it said on standard error."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors


@contextlib.contextmanager
def process(*words: str) -> Iterator[Process]:
    running = Process(*words)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


def stream(stub: Any) -> Any:
    return stub.Generate(ask([300, 301], **LONG))


def codes_of(calls: list[Any]) -> set[grpc.StatusCode]:
    codes = set()
    for call in calls:
        with contextlib.suppress(grpc.RpcError):
            for _ in call:
                pass
        codes.add(call.code())
    return codes


PLACES = pytest.mark.parametrize("place", ["thread", "process"])


@PLACES
@pytest.mark.parametrize(
    ("fault", "bounds", "words"),
    [("hangs", ("0.3", "0.3"), "the engine is given up"), ("lost", (), "the engine has died")],
)
def test_a_fault_of_the_device_ends_the_process_for_its_supervisor(
    place: str, fault: str, bounds: tuple[str, ...], words: str
) -> None:
    with (
        process(place, fault, *bounds) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        calls = [stream(pb_grpc.InferenceServiceStub(channel)) for _ in range(8)]
        assert codes_of(calls) == {grpc.StatusCode.UNAVAILABLE}
        code, errors = server.end()
        assert code == 1
        assert words in errors


def test_a_step_that_holds_the_interpreter_ends_the_process_too() -> None:
    with (
        process("thread", "grabs", "0.5", "0.5") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        calls = [stream(pb_grpc.InferenceServiceStub(channel))]
        assert codes_of(calls) == {grpc.StatusCode.UNAVAILABLE}
        code, errors = server.end()
        assert code == -signal.SIGKILL  # by the deadman: nothing in the process could
        assert "in lock_twice" in errors  # all stacks, the step's among them


def test_a_step_that_holds_its_own_interpreter_leaves_the_server_time_for_last_words() -> None:
    with (
        process("process", "grabs", "0.5", "1.0") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call = stream(pb_grpc.InferenceServiceStub(channel))
        kinds: list[str | None] = []
        with contextlib.suppress(grpc.RpcError):
            for message in call:
                kinds.append(message.WhichOneof("event"))
        assert kinds[-1] == "finished" and call.code() is grpc.StatusCode.UNAVAILABLE
        code, errors = server.end()
        assert code == 1
        told, stack, end = map(
            errors.index, ("the engine stands here:\n", "in lock_twice\n", "the engine is given up")
        )
        assert told < stack < end  # each on a line of its own: the engine writes past the log


def test_a_step_that_holds_its_own_interpreter_does_not_outlive_the_server() -> None:
    with (
        process("process", "grabs", "0.2", "0") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call = stream(pb_grpc.InferenceServiceStub(channel))
        (engine,) = psutil.Process(server.process.pid).children()
        assert server.process.stderr is not None
        assert any("in lock_twice" in line for line in server.process.stderr)
        server.process.kill()
        engine.wait(PATIENCE)
        assert codes_of([call]) == {grpc.StatusCode.UNAVAILABLE}


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (signal.SIGTERM, "process"),
        (signal.SIGINT, "thread"),
        pytest.param(signal.SIGTERM, "thread", marks=pytest.mark.long),
        pytest.param(signal.SIGINT, "process", marks=pytest.mark.long),
    ],
)
def test_a_signal_in_full_load_gives_every_stream_its_end(
    number: signal.Signals, place: str
) -> None:
    with process(place, "none") as server, grpc.insecure_channel(server.address) as channel:
        calls = [stream(pb_grpc.InferenceServiceStub(channel)) for _ in range(SLOTS + 20)]
        for call in calls[: SLOTS - 20]:
            assert next(call).HasField("started")
        server.process.send_signal(number)
        codes = codes_of(calls)
        assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK}
        code, errors = server.end()
        assert code == 0, errors
        assert "Traceback" not in errors


@PLACES
def test_a_signal_while_calls_wait_for_their_first_look_gives_each_a_word(place: str) -> None:
    with process(place, "none") as server, grpc.insecure_channel(server.address) as channel:
        calls = [stream(pb_grpc.InferenceServiceStub(channel)) for _ in range(1200)]
        assert next(calls[0]).HasField("started")
        server.process.send_signal(signal.SIGTERM)
        assert codes_of(calls) == {grpc.StatusCode.UNAVAILABLE}
        assert server.end()[0] == 0


@PLACES
def test_a_signal_while_a_step_hangs_is_obeyed_and_tells_the_supervisor(place: str) -> None:
    with process(place, "hangs") as server, grpc.insecure_channel(server.address) as channel:
        call = stream(pb_grpc.InferenceServiceStub(channel))
        assert next(call).HasField("started")
        server.process.send_signal(signal.SIGTERM)
        assert codes_of([call]) == {grpc.StatusCode.UNAVAILABLE}
        code, errors = server.end()
        assert code == 1
        assert "did not end its step" in errors
