"""Refusals, limits and failures as OpenAI's client sees them; what a client that leaves frees."""

import asyncio
from typing import Any

import openai
import pytest
from support.fake_engine import Device
from support.harness import run, serving
from support.held_calls import until
from support.openai_calls import HELLO, client

from quire.service.errors import rate_limited


def test_refusals_are_the_client_s_own_errors_with_the_field() -> None:
    async def refused(api: openai.AsyncOpenAI, **more: Any) -> openai.APIStatusError:
        with pytest.raises(openai.APIStatusError) as caught:
            await api.chat.completions.create(**{"model": "fake", "messages": HELLO, **more})
        return caught.value

    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:
            for field, more in (
                ("temperature", {"temperature": -1}),
                ("max_completion_tokens", {"max_completion_tokens": 0}),
                ("top_logprobs", {"top_logprobs": 21, "logprobs": True}),
                ("stop[0]", {"stop": ["x" * 257]}),
                ("wit", {"extra_body": {"wit": 1}}),
                ("messages[0].role", {"messages": [{"role": "wizard", "content": "x"}]}),
                ("priority", {"extra_body": {"priority": -1}}),
                ("x-request-id", {"extra_headers": {"x-request-id": "a b"}}),
            ):
                error = await refused(api, **more)
                assert (type(error), error.param) == (openai.BadRequestError, field)
            error = await refused(api, model="another")
            assert isinstance(error, openai.NotFoundError) and error.code == "model_not_found"
            stats = await running.idle()
            assert stats.requests.refused["INVALID_ARGUMENT"] == 8
            assert (stats.requests.accepted, stats.requests.refused["NOT_FOUND"]) == (0, 1)

    run(test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_blocks(stream: bool) -> None:
    device = Device()

    async def test() -> None:
        async with serving(device, http=True) as running, client(running) as api:
            device.hold()
            call = asyncio.create_task(
                api.chat.completions.create(model="fake", messages=HELLO, stream=stream)
            )
            await running.until(lambda stats: stats.requests.running == 1)
            call.cancel()
            [told] = await asyncio.gather(call, return_exceptions=True)
            if not isinstance(told, BaseException):  # its answer has begun
                await told.close()
            await until(lambda: running.server.ledger.rpcs["Generate", "CANCELLED"] > 0)
            device.release()
            stats = await running.idle()
            assert stats.requests.finished_cancelled == 1

    run(test)


def test_a_stream_that_is_closed_half_way_is_cancelled() -> None:
    device = Device()

    async def test() -> None:
        async with serving(device, http=True) as running, client(running) as api:
            stream = await api.completions.create(
                model="fake",
                prompt=[300, 301],
                stream=True,
                max_tokens=2000,
                extra_body={"ignore_eos": True},
            )
            await anext(aiter(stream))
            device.hold()
            await stream.close()
            await until(lambda: running.server.ledger.rpcs["Generate", "CANCELLED"] > 0)
            device.release()
            await running.idle()

    run(test)


def test_limits_are_429_with_the_time_to_come_again() -> None:
    async def test() -> None:
        limits = {"rate_limit_requests": 1e-4, "rate_limit_burst_seconds": 1e4}
        async with serving(http=True, **limits) as running, client(running) as api:
            await api.chat.completions.create(model="fake", messages=HELLO)
            with pytest.raises(openai.RateLimitError) as caught:
                await api.chat.completions.create(model="fake", messages=HELLO)
            assert int(caught.value.response.headers["retry-after"]) >= 1
            told = rate_limited("requests", 1e-4, 1.0).message
            assert caught.value.body["message"] == told  # type: ignore[index]

    run(test)


def test_a_failed_step_is_a_status_before_the_answer_and_an_event_within_it() -> None:
    device = Device()

    async def test() -> None:
        async with serving(device, http=True) as running, client(running) as api:
            device.fail = ValueError("a fault")
            with pytest.raises(openai.InternalServerError, match="its log knows it"):
                await api.chat.completions.create(model="fake", messages=HELLO)
            device.fail_after(20)
            stream = await api.completions.create(
                model="fake",
                prompt=[300, 301],
                stream=True,
                max_tokens=2000,
                extra_body={"ignore_eos": True},
            )
            with pytest.raises(openai.APIError, match="its log knows it"):
                async for _ in stream:
                    pass
            await running.idle()

    run(test)


def test_while_it_loads_and_drains_it_says_so() -> None:
    async def test() -> None:
        async with serving(http=True, load=False) as running, client(running) as api:
            for call in (
                api.chat.completions.create(model="fake", messages=HELLO),
                api.models.list(),
            ):
                with pytest.raises(openai.InternalServerError) as caught:
                    await call
                assert (caught.value.status_code, caught.value.code) == (503, "loading")
                assert caught.value.response.headers["retry-after"] == "1"
            with pytest.raises(openai.InternalServerError):
                await api.get(f"{running.url}/health", cast_to=object)
        async with serving(http=True) as running, client(running) as api:
            await running.server.drain()
            with pytest.raises(openai.InternalServerError) as caught:
                await api.chat.completions.create(model="fake", messages=HELLO)
            assert caught.value.code == "draining"

    run(test)
