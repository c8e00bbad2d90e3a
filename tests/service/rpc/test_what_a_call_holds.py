"""What a call may hold, from its first byte to its last."""

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from support.clock import Clock
from support.fake_engine import VOCAB_SIZE
from support.harness import Running, ask, generate, overdue, read, run, serving
from support.held_calls import EXHAUSTED, until
from support.patience import PATIENCE

from quire.service.errors import Refusal
from quire.service.lifecycle import Phase
from quire.service.rpc.call_admission import check_deadline
from quire.service.rpc.open_calls import ended_code
from quire.service.rpc.write_watch import WriteWatch
from quire.v1 import inference_pb2 as pb


async def busy(running: Running) -> threading.Event:
    """All threads for prompts stand until the event is set."""
    gate, workers, standing = threading.Event(), running.server._workers, []

    def stand(_: Callable[[], bool]) -> None:
        standing.append(1)
        gate.wait(PATIENCE)

    for _ in range(workers._count):
        work = asyncio.ensure_future(workers.run(stand, "busy"))
        work.add_done_callback(lambda done: done.exception())
    await until(lambda: len(standing) == workers._count)
    return gate


# ------------------------------------------------------------ before it is let in


def test_a_place_is_taken_before_any_work_on_the_prompt() -> None:
    async def test() -> None:
        async with serving(engine={"max_num_seqs": 1}, max_waiting=2) as running:
            gate, workers = await busy(running), running.server._workers
            calls = [running.stub.Generate(ask(text="hello")) for _ in range(40)]
            reads = [asyncio.ensure_future(read(call)) for call in calls]
            await until(lambda: sum(task.done() for task in reads) == 38)
            refused = [task.result() for task in reads if task.done()]
            assert {answer.code for answer in refused} == {EXHAUSTED}
            assert workers.waiting == running.server._admission.waiting == 2
            for call in calls:
                call.cancel()
            await until(lambda: not workers.waiting)
            await until(lambda: not running.server._admission.waiting)
            gate.set()
            await running.idle()

    run(test)


@pytest.mark.parametrize("kind", ["text", "chat", "resume", "stop"])
def test_work_that_grows_with_a_request_is_never_the_loops(kind: str) -> None:
    async def test() -> None:
        async with serving() as running:
            gate, workers = await busy(running), running.server._workers
            request = {
                "text": ask(text="a"),
                "chat": pb.GenerateRequest(
                    chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="a")])
                ),
                "resume": ask([300], resume_token_ids=[301], max_tokens=5),
                "stop": ask([300], stop=["x"]),
            }[kind]
            request.sampling.max_tokens = 3
            call = running.stub.Generate(request)
            await until(lambda: workers.waiting == 1)
            gate.set()
            assert (await read(call)).code is grpc.StatusCode.OK

    run(test)


def test_a_drain_that_begins_while_the_prompt_is_read_refuses_the_call() -> None:
    async def test() -> None:
        async with serving() as running:
            gate, workers = await busy(running), running.server._workers
            call = running.stub.Generate(ask(text="hello"))
            await until(lambda: workers.waiting == 1)
            running.server._lifecycle.advance(Phase.DRAINING)
            gate.set()
            answer = await read(call)
            assert answer.code is grpc.StatusCode.UNAVAILABLE
            assert not answer.started

    run(test)


def test_a_call_whose_deadline_passes_leaves_no_job_and_is_counted_as_such() -> None:
    async def test() -> None:
        async with serving() as running:
            gate, workers = await busy(running), running.server._workers
            call = await overdue(
                lambda seconds: running.stub.Generate(ask(text="hello"), timeout=seconds),
                lambda: workers.waiting == 1,
            )
            assert (await read(call)).code is grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: not workers.waiting)
            await until(lambda: not running.server._admission.waiting)
            ledger = running.server.ledger
            await until(lambda: bool(ledger.rpcs))
            assert list(ledger.rpcs) == [("Generate", "DEADLINE_EXCEEDED")]
            gate.set()

    run(test)


class At:
    """A context with so much time left."""

    def __init__(self, remaining: float | None) -> None:
        self._remaining = remaining

    def time_remaining(self) -> float | None:
        return self._remaining


def test_a_passed_deadline_is_told_from_a_cancelled_call() -> None:
    cancelled = grpc.StatusCode.CANCELLED
    contexts: list[Any] = [At(0.0), At(-1.0), At(1.0), At(None)]
    late = grpc.StatusCode.DEADLINE_EXCEEDED
    assert [ended_code(cancelled, c) for c in contexts] == [late, late, cancelled, cancelled]
    assert ended_code(grpc.StatusCode.OK, contexts[0]) is grpc.StatusCode.OK
    for context in contexts[:2]:
        with pytest.raises(Refusal) as caught:
            check_deadline(context)
        assert caught.value.code is late
    for context in contexts[2:]:
        check_deadline(context)


def test_ids_are_counted_before_they_are_looked_at() -> None:
    async def test() -> None:
        async with serving() as running:
            over = [VOCAB_SIZE] * 2048  # both too many and no ids of the vocabulary
            answer = await generate(running, ask(over))
            assert "2048 tokens" in answer.violations["token_ids"]
            answer = await generate(running, ask([300], resume_token_ids=[VOCAB_SIZE] * 2049))
            assert answer.violations == {
                "resume_token_ids": "2049: at most 2048 tokens: max_model_len"
            }

    run(test)


class Recording:
    """A chat template that keeps what it was given."""

    def __init__(self) -> None:
        self.limits: Any = None

    def render(self, _conversation: Any, limits: Any) -> str:
        self.limits = limits
        return "hello"


def test_what_a_chat_may_become_is_bounded_before_it_is_rendered() -> None:
    async def test() -> None:
        async with serving() as running:
            prompts = running.server._servicer.serving.validator.prompts  # type: ignore[union-attr]
            template: Any = Recording()
            prompts._model = dataclasses.replace(prompts._model, chat=template)
            chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="a")])
            await generate(running, pb.GenerateRequest(chat=chat))
            most = prompts._model.tokenizer.max_text_bytes(2048)
            assert template.limits.max_bytes == most
            assert not template.limits.wanted()  # the call has ended by now

    run(test)


class Deaf:
    """A context whose client hears nothing."""

    async def abort(self, *_status: Any) -> None:
        raise grpc.aio.AbortError


def test_what_waits_to_be_read_is_bounded_in_all() -> None:
    async def test() -> None:
        clock = Clock()
        watch, ended = WriteWatch(0.0, max_unread=100, clock=clock), []

        async def call(name: str, waits: int) -> None:
            with watch.call(Deaf()) as writes:
                writes.unread = lambda: waits
                next(writes.each(["a message"]))
                try:
                    await asyncio.sleep(PATIENCE)
                except asyncio.CancelledError:
                    ended.append(name)

        sizes = {"small": 40, "large": 90, "larger": 120}
        calls = [asyncio.ensure_future(call(name, waits)) for name, waits in sizes.items()]
        await asyncio.sleep(0)
        watch.look()
        await asyncio.sleep(0)
        assert not ended  # none has stalled yet
        clock.now += 1.0
        watch.look()
        await asyncio.wait(calls[1:])
        assert sorted(ended) == ["large", "larger"]
        assert not calls[0].done()
        calls[0].cancel()
        await asyncio.wait(calls)
        assert not len(watch)

    run(test)
