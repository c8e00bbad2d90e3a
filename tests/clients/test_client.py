"""The synchronous and the asyncio client against a real channel: events, cancellation, retries,
deadlines, several servers, metadata."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from support.patience import PATIENCE

from quire import clients
from quire.clients import AsyncClient, Client, Delta, Finished, Message, RetryPolicy, Started
from quire.clients.async_client import _Stream
from quire.clients.client import is_serving

QUICK = RetryPolicy(attempts=3, first_backoff=0.001, max_backoff=0.002)


def collect(server: Any, prompt: Any, mode: str, **options: Any) -> list[Any]:
    """All events of one generation, by either client."""
    if mode == "sync":
        with Client(server.address, retry=QUICK) as client:
            return list(client.generate(prompt, **options))

    async def run() -> list[Any]:
        async with AsyncClient(server.address, retry=QUICK) as client:
            return [event async for event in client.generate(prompt, **options)]

    return asyncio.run(run())


BOTH = pytest.mark.parametrize("mode", ["sync", "async"])


@BOTH
def test_events_come_as_plain_values(server: Any, mode: str) -> None:
    first, *deltas, last = collect(server, "say hello wörld", mode, seed=3, request_id="abc")
    assert first == Started("abc", 3, "fake", prompt_tokens=5, cached_tokens=4)
    assert [d.text for d in deltas] == ["hello", " wörld"]
    assert deltas[0].logprobs[0].bytes == b"hello"
    assert deltas[0].logprobs[0].top[0].logprob == -0.25
    assert isinstance(last, Finished)
    assert (last.reason, last.stop_token_id, last.stop_string) == ("stop", 2, None)
    assert (last.queued_seconds, last.prefill_seconds, last.decode_seconds) == (0.25, 0.5, 1.5)
    assert (last.completion_tokens, last.peak_blocks) == (2, 3)


def test_the_stream_as_the_contract_has_it(server: Any) -> None:
    async def run() -> None:
        async with AsyncClient(server.address) as client:
            generation = client.generate("say hello there", request_id="abc")
            messages = [message async for message in generation.messages()]
            kinds = [message.WhichOneof("event") for message in messages]
            assert kinds == ["started", "delta", "delta", "finished"]
            assert messages[0].started.request_id == "abc"
            with pytest.raises(clients.ClientError, match="iterated once"):
                generation.messages()
            forever = client.generate("forever")
            async for _ in forever.messages():
                break
        assert await asyncio.to_thread(server.seen.cancelled.wait, PATIENCE)

    asyncio.run(run())


@BOTH
def test_prompts_in_three_forms(server: Any, mode: str) -> None:
    def text(events: list[Any]) -> str:
        return "".join(e.text for e in events if isinstance(e, Delta))

    assert text(collect(server, "say hi", mode)) == "hi"
    assert text(collect(server, [5, 6, 7], mode)) == "5 6 7"
    chat = [Message("system", "be"), {"role": "user", "content": "good"}]
    assert text(collect(server, chat, mode)) == "be good"
    kinds = [r.WhichOneof("prompt") for r in server.seen.requests]
    assert kinds == ["text", "token_ids", "chat"]


def test_every_option_arrives(server: Any) -> None:
    options = {
        "temperature": 0.0, "top_p": 0.5, "top_k": 0, "min_p": 0.25, "repetition_penalty": 1.5,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "seed": 0, "n": 2, "max_tokens": 9,
        "min_tokens": 1, "stop": ["a", "b"], "include_stop_str_in_output": True,
        "stop_token_ids": [1, 2], "ignore_eos": True, "logprobs": 0,
    }  # fmt: skip
    chat = {
        "chat_template_kwargs": {"enable_thinking": False, "depth": [1, {"a": None}]},
        "continue_final_message": True,
        "add_generation_prompt": False,
        "allow_special_tokens": True,
        "tools": [{"name": "f", "parameters": {"type": "object"}}],
    }
    outer = {"priority": -3, "cache_salt": "s", "model": "m", "request_id": "r"}
    turns = [
        {"role": "user", "content": "say x"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]},
        {"role": "tool", "content": "say done", "name": "f"},
    ]
    with Client(server.address) as client:
        completions = client.generate(turns, **options, **chat, **outer).completions()  # type: ignore[arg-type]
    assert [c.index for c in completions] == [0, 1]
    assert completions[1].text == "done"
    request = server.seen.requests[0]
    for name, value in options.items():
        got = getattr(request.sampling, name)
        assert (list(got) if isinstance(value, list) else got) == value, name
    scalars = [n for n, v in options.items() if n not in ("stop", "stop_token_ids")]
    optional = [n for n in scalars if n not in ("include_stop_str_in_output", "ignore_eos")]
    assert all(request.sampling.HasField(n) for n in optional)
    assert (
        request.chat.chat_template_kwargs == '{"enable_thinking": false, "depth": [1, {"a": null}]}'
    )
    assert request.chat.HasField("add_generation_prompt")
    assert request.chat.continue_final_message and request.chat.allow_special_tokens
    assert request.chat.tools[0].name == "f"
    assert request.chat.messages[1].tool_calls[0].arguments_json == '{"a": 1}'
    assert request.chat.messages[2].name == "f"
    assert [getattr(request, n) for n in outer] == list(outer.values())


def test_what_is_not_given_is_not_sent(server: Any) -> None:
    with Client(server.address) as client:
        client.generate("say x", temperature=None).text()
    assert not server.seen.requests[0].HasField("sampling")


@pytest.mark.parametrize(
    ("prompt", "options", "named"),
    [
        ("x", {"max_tokens": -1}, "max_tokens"),
        ("x", {"tempreature": 1}, "tempreature"),
        ("x", {"seed": 1 << 64}, "seed"),
        ("x", {"temperature": "hot"}, "temperature"),
        ("x", {"tools": []}, "tools"),
        ([1, -2], {}, "ids"),
        ([1, {"role": "user"}], {}, "messages and token ids"),
        ([{"role": "user", "contents": "x"}], {}, "contents"),
        ([{"role": "user", "content": 3}], {}, "content"),
        (7, {}, "prompt"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(prompt: Any, options: Any, named: str) -> None:
    with Client() as client, pytest.raises(clients.OptionError, match=named):
        client.generate(prompt, **options)


def test_leaving_the_loop_cancels(server: Any) -> None:
    with Client(server.address) as client:
        generation = client.generate("forever")
        for event in generation:
            if isinstance(event, Delta):
                break
        assert server.seen.cancelled.wait(PATIENCE)
        with pytest.raises(clients.ClientError, match="once"):
            iter(generation)


def test_an_exception_in_the_loop_cancels(server: Any) -> None:
    with Client(server.address) as client:
        with pytest.raises(KeyboardInterrupt):
            for _ in client.generate("forever"):
                raise KeyboardInterrupt
        assert server.seen.cancelled.wait(PATIENCE)


def test_closing_from_another_thread_ends_the_loop(server: Any) -> None:
    with Client(server.address) as client, client.generate("hang") as generation:
        closer = threading.Thread(
            target=lambda: server.seen.started.wait(PATIENCE) and generation.close()
        )
        closer.start()
        with pytest.raises(clients.Cancelled):
            list(generation)
        closer.join()
        assert server.seen.cancelled.wait(PATIENCE)


async def _leave_by_break(client: AsyncClient, _: Any) -> None:
    generation = client.generate("forever")
    async for event in generation:
        if isinstance(event, Delta):
            break


async def _leave_by_exception(client: AsyncClient, _: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        async for _event in client.generate("forever"):
            raise ZeroDivisionError


async def _leave_by_task_cancel(client: AsyncClient, server: Any) -> None:
    async def consume() -> None:
        async for _ in client.generate("hang"):
            pass

    task = asyncio.create_task(consume())
    await asyncio.to_thread(server.seen.started.wait, PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _leave_by_call_cancel(client: AsyncClient, server: Any) -> None:
    generation = client.generate("hang")

    async def cancel() -> None:
        await asyncio.to_thread(server.seen.started.wait, PATIENCE)
        generation.cancel()

    helper = asyncio.create_task(cancel())
    with pytest.raises(clients.Cancelled):
        async for _ in generation:
            pass
    await helper


async def _leave_by_context(client: AsyncClient, _: Any) -> None:
    async with client.generate("forever") as generation:
        iterator = aiter(generation)
        await anext(iterator)
    del iterator


@pytest.mark.parametrize(
    "leave",
    [
        _leave_by_break,
        _leave_by_exception,
        _leave_by_task_cancel,
        _leave_by_call_cancel,
        _leave_by_context,
    ],
)
def test_leaving_the_async_loop_cancels(
    server: Any, leave: Callable[[AsyncClient, Any], Awaitable[None]]
) -> None:
    async def run() -> bool:
        async with AsyncClient(server.address) as client:
            await leave(client, server)
            return await asyncio.to_thread(server.seen.cancelled.wait, PATIENCE)

    assert asyncio.run(run())


def test_a_call_of_a_loop_that_closes_just_now_is_cancelled_without_a_word() -> None:
    class Closing:
        """Closed by another thread after each look at it."""

        def is_closed(self) -> bool:
            return False

        def call_soon_threadsafe(self, *_: Any) -> None:
            raise RuntimeError("Event loop is closed")

    stream: Any = _Stream()
    stream.call, stream._loop = threading.Timer(0.0, print), Closing()
    stream.cancel()
    assert stream.cancelled


@BOTH
def test_unavailable_is_tried_again(server: Any, mode: str) -> None:
    events = collect(server, "fail-times 2", mode)
    assert isinstance(events[-1], Finished)
    assert server.seen.calls["fail-times"] == 3


@BOTH
def test_tries_are_bounded(server: Any, mode: str) -> None:
    with pytest.raises(clients.Unavailable, match="draining"):
        collect(server, "fail-times 99", mode)
    assert server.seen.calls["fail-times"] == QUICK.attempts


@BOTH
def test_nothing_is_repeated_once_something_came(server: Any, mode: str) -> None:
    with pytest.raises(clients.Unavailable, match="late"):
        collect(server, "late UNAVAILABLE", mode)
    assert server.seen.calls["late"] == 1


@BOTH
def test_pushback_is_honoured(server: Any, mode: str) -> None:
    begin = time.monotonic()
    events = collect(server, "busy-times 1 200", mode)
    assert isinstance(events[-1], Finished)
    assert time.monotonic() - begin >= 0.2
    assert server.seen.calls["busy-times"] == 2


@BOTH
@pytest.mark.parametrize("pushback", ["-1", "3600000"])
def test_a_refusing_pushback_is_not_waited_for(server: Any, mode: str, pushback: str) -> None:
    with pytest.raises(clients.Overloaded):
        collect(server, f"busy-times 1 {pushback}", mode)
    assert server.seen.calls["busy-times"] == 1


@BOTH
def test_other_errors_are_not_repeated_and_keep_their_details(server: Any, mode: str) -> None:
    with pytest.raises(clients.InvalidRequest) as caught:
        collect(server, "fail INVALID_ARGUMENT top_p: 7 is above 1", mode)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details.violations[0].field == "top_p"
    assert caught.value.details.reason == "BECAUSE"
    assert server.seen.calls["fail"] == 1


@BOTH
def test_a_message_beyond_grpcs_bound_is_no_matter_of_room(server: Any, mode: str) -> None:
    with pytest.raises(clients.InvalidRequest, match="larger than max") as caught:
        collect(server, "say " + "x" * (5 << 20), mode)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@BOTH
def test_a_deadline_ends_the_call_on_both_sides(server: Any, mode: str) -> None:
    for seconds in (0.3, 3.0, 30.0):  # the longer where it has not come in by then
        with pytest.raises(clients.DeadlineExceeded):
            collect(server, "hang", mode, timeout=seconds)
        if server.seen.started.is_set():
            break
    assert server.seen.cancelled.wait(PATIENCE)


@BOTH
def test_retries_stay_within_the_deadline(server: Any, mode: str) -> None:
    with pytest.raises(clients.Overloaded):
        collect(server, "busy-times 1 20000", mode, timeout=10.0)
    assert server.seen.calls["busy-times"] == 1


@pytest.mark.parametrize("timeout", [0, -1.0])
def test_a_deadline_is_positive(server: Any, timeout: float) -> None:
    with Client(server.address) as client, pytest.raises(clients.OptionError, match="timeout"):
        client.generate("say x", timeout=timeout).text()


def test_several_servers_take_turns(server: Any, second_server: Any) -> None:
    turns = clients.ReplicaPolicy(routing="round_robin")
    with Client([server.address, second_server.address], replicas=turns) as client:
        for _ in range(10):
            client.generate("say x").text()
    assert [len(s.seen.requests) for s in (server, second_server)] == [5, 5]


def test_one_dead_server_of_two_is_passed_over(server: Any, fake: Any) -> None:
    with fake.FakeServer() as dead:
        address = dead.address
    with Client([address, server.address]) as client:
        assert [client.generate("say x").text() for _ in range(5)] == ["x"] * 5


@BOTH
def test_the_api_key_travels(server: Any, mode: str) -> None:
    async def run() -> None:
        async with AsyncClient(server.address, api_key="k-1") as client:
            assert await client.generate("say x").text() == "x"
            await client.stats()

    if mode == "async":
        asyncio.run(run())
    else:
        with Client(server.address, api_key="k-1") as client:
            client.generate("say x").text()
            client.stats()
    assert [m["authorization"] for m in server.seen.metadata] == ["Bearer k-1"] * 2


def test_stats_and_health(server: Any) -> None:
    with Client(server.address) as client:
        assert client.stats().cache.blocks_total == 6
        assert client.stats().cache.block_map == b""
        assert len(client.stats(include_block_map=True).cache.block_map) == 6
        assert (client.health(), client.health("liveness")) == ("SERVING", "NOT_SERVING")
        assert is_serving(client) and not is_serving(client, "liveness")
        with pytest.raises(clients.InvalidRequest):
            client.health("nobody")

    async def run() -> tuple[int, str]:
        async with AsyncClient(server.address) as client:
            return (await client.stats()).cache.blocks_total, await client.health()

    assert asyncio.run(run()) == (6, "SERVING")
