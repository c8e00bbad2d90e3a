"""The threads that read prompts: whom they serve, what they drop, who waits for them."""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from support.harness import generate, run, serving
from support.http1 import CHAT, HELLO, ask, posted
from support.patience import PATIENCE

from quire.engine.errors import ModelError
from quire.service.errors import Refusal
from quire.service.models import pocket
from quire.service.text.text_side import read_text_side
from quire.service.text.tokenizer import Tokenizer
from quire.service.text.workers import LARGE_BYTES, PromptWorkers
from quire.v1 import inference_pb2 as pb


class Gate:
    """Work that goes on when it is told to."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.open = threading.Event()
        self.unwanted = False

    def __call__(self, wanted: Callable[[], bool]) -> str:
        self.began.set()
        assert self.open.wait(PATIENCE)
        self.unwanted = not wanted()
        return "done"


async def held(workers: PromptWorkers, count: int, size: int = 0) -> list[Gate]:
    """Gates that `count` threads stand at."""
    gates = [Gate() for _ in range(count)]
    for gate in gates:
        asyncio.ensure_future(workers.run(gate, "held", size))  # noqa: RUF006
        await asyncio.sleep(0)
        assert await asyncio.to_thread(gate.began.wait, PATIENCE)
    return gates


def test_a_job_whose_call_has_ended_is_gone_at_once() -> None:
    async def test() -> None:
        workers, ran = PromptWorkers(threads=2), []
        gates = await held(workers, 2)
        calls = [
            asyncio.ensure_future(workers.run(lambda _: ran.append(1), "a", 10)) for _ in range(300)
        ]
        await asyncio.sleep(0)
        assert (workers.waiting, workers.waiting_bytes) == (300, 3000)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert (workers.waiting, workers.waiting_bytes) == (0, 0)
        for gate in gates:
            gate.open.set()
        assert await workers.run(lambda _: "next", "b") == "next"
        assert not ran
        workers.close()

    run(test)


def test_a_job_that_runs_is_told_when_nobody_waits_for_it() -> None:
    async def test() -> None:
        workers, gate = PromptWorkers(threads=2), Gate()
        call = asyncio.ensure_future(workers.run(gate))
        await asyncio.sleep(0)
        assert await asyncio.to_thread(gate.began.wait, PATIENCE)
        call.cancel()
        await asyncio.wait({call})
        gate.open.set()
        assert await workers.run(lambda wanted: wanted(), "b")
        while not gate.unwanted:
            await asyncio.sleep(0)
        workers.close()

    run(test)


def test_large_prompts_leave_a_thread_to_the_others() -> None:
    async def test() -> None:
        workers = PromptWorkers(threads=3)
        gates = await held(workers, 2, LARGE_BYTES + 1)
        waits = asyncio.ensure_future(workers.run(lambda _: "large", "b", LARGE_BYTES + 1))
        await asyncio.sleep(0)
        assert workers.waiting == 1  # before the small one comes
        assert await workers.run(lambda _: "small", "c") == "small"
        assert not waits.done()
        for gate in gates:
            gate.open.set()
        assert await waits == "large"
        workers.close()

    run(test)


def test_clients_take_turns() -> None:
    async def test() -> None:
        workers, order = PromptWorkers(threads=2), []
        first, second = await held(workers, 2)

        def said(name: str) -> Callable[[Callable[[], bool]], None]:
            return lambda _: order.append(name)

        names = ["a1", "a2", "a3", "b1", "c1"]
        calls = [asyncio.ensure_future(workers.run(said(n), n[0])) for n in names]
        await asyncio.sleep(0)
        first.open.set()  # one thread is free now
        await asyncio.gather(*calls)
        assert order == ["a1", "b1", "c1", "a2", "a3"]
        second.open.set()
        workers.close()

    run(test)


def test_what_waits_is_bounded_in_bytes() -> None:
    async def test() -> None:
        workers = PromptWorkers(threads=2, max_waiting_bytes=100)
        gates = await held(workers, 2)
        one = asyncio.ensure_future(workers.run(lambda _: None, "a", 500))  # alone it may
        await asyncio.sleep(0)
        with pytest.raises(Refusal) as caught:
            await workers.run(lambda _: None, "b", 1)
        assert caught.value.reason == "QUEUE_FULL"
        assert "500 bytes" in caught.value.message and "at most 100" in caught.value.message
        for gate in gates:
            gate.open.set()
        await one
        workers.close()

    run(test)


def test_the_end_waits_for_no_job_and_every_call_hears_of_it() -> None:
    async def test() -> None:
        workers, gate = PromptWorkers(threads=2), Gate()
        runs = asyncio.ensure_future(workers.run(gate))
        waits = [asyncio.ensure_future(workers.run(gate)) for _ in range(5)]
        await asyncio.sleep(0)
        assert await asyncio.to_thread(gate.began.wait, PATIENCE)
        workers.close()
        await asyncio.wait({runs, *waits})
        reasons = {call.exception().reason for call in (runs, *waits)}  # type: ignore[union-attr]
        assert reasons == {"DRAINING"}
        with pytest.raises(Refusal):
            await workers.run(gate)
        assert all(thread.daemon for thread in workers._threads)
        gate.open.set()

    run(test)


def test_an_error_of_the_work_is_the_calls_own() -> None:
    async def test() -> None:
        workers = PromptWorkers(threads=2)
        for error, raised in ((ValueError("no"), ValueError), (StopIteration(), RuntimeError)):

            def fails(_: Callable[[], bool], error: Exception = error) -> None:
                raise error

            with pytest.raises(raised):
                await workers.run(fails)
        assert await workers.run(lambda _: 1) == 1
        workers.close()

    run(test)


class Panic(BaseException):
    """As those of libraries in Rust, no Exception."""


def test_a_library_that_panics_ends_its_call_and_no_other() -> None:
    """A call over gRPC that is ended by what is no Exception would be answered never."""

    async def test() -> None:
        workers = PromptWorkers(threads=2)

        def panics(_wanted: object) -> None:
            raise Panic("index out of bounds")

        for _ in range(4):
            with pytest.raises(RuntimeError, match=r"Panic.*index out of bounds"):
                await workers.run(panics)
        assert await workers.run(lambda _: "next") == "next"
        workers.close()

    run(test)


def test_a_text_that_a_tokenizer_panics_at_is_an_internal_error_in_both_faces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def panics(*_: object, **__: object) -> None:
        raise Panic("index out of bounds")

    async def test() -> None:
        async with serving(http=True) as running:
            monkeypatch.setattr(Tokenizer, "encoding", panics)
            answer = await generate(running, pb.GenerateRequest(text="Hello"))
            assert answer.code is grpc.StatusCode.INTERNAL
            told = await ask(running.server.http_port, posted(CHAT, HELLO))
            assert (told.status, told.code) == (500, "fault")
            monkeypatch.undo()
            answer = await generate(running, pb.GenerateRequest(text="Hello"))
            assert answer.code is grpc.StatusCode.OK
            assert (await running.idle()).requests.refused == {"INTERNAL": 2}

    run(test)


def test_a_tokenizer_that_panics_while_it_is_read_is_named(tmp_path: Path) -> None:
    made = json.loads((pocket.directory() / "tokenizer.json").read_text())
    made["model"]["continuing_subword_prefix"] = "##"
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    with pytest.raises(ModelError, match="its tokenizer cannot be used: PanicException"):
        read_text_side(tmp_path, 4096)
