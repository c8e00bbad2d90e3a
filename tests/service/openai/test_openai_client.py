"""OpenAI's own Python client, as it is, against the HTTP API."""

import asyncio
from typing import Any

import openai
import pytest
from support.fake_engine import Device
from support.harness import run, serving
from support.held_calls import until
from support.openai_calls import HELLO, client

from quire.service.telemetry.tracing import EndedCall

SAID = "user\nHello"  # the device says the prompt back


def test_a_chat_is_answered_whole() -> None:
    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:
            told = await api.chat.completions.create(
                model="fake", messages=HELLO, n=2, logprobs=True, top_logprobs=2, seed=-5
            )
            assert [choice.message.content for choice in told.choices] == [SAID, SAID]
            assert [choice.index for choice in told.choices] == [0, 1]
            choice = told.choices[0]
            assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
            assert choice.logprobs is not None and choice.logprobs.content is not None
            first = choice.logprobs.content[1]
            assert (first.token, bytes(first.bytes or [])) == ("user", b"user")
            assert [len(one.top_logprobs) for one in choice.logprobs.content][:2] == [2, 2]
            assert told.usage is not None and told.usage.prompt_tokens_details is not None
            assert told.usage.total_tokens == (
                told.usage.prompt_tokens + told.usage.completion_tokens
            )
            assert told.usage.completion_tokens == 2 * len(choice.logprobs.content)
            assert (told.object, told.model) == ("chat.completion", "fake")
            assert told.system_fingerprint == "fake-fingerprint"

    run(test)


def test_a_chat_is_streamed_and_ends_with_its_usage() -> None:
    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:
            stream = await api.chat.completions.create(
                model="fake",
                messages=HELLO,
                n=2,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            *told, last = chunks
            assert last.choices == [] and last.usage is not None
            assert last.usage.completion_tokens > 0
            assert all(chunk.usage is None for chunk in told)
            for index in (0, 1):
                deltas = [c for chunk in told for c in chunk.choices if c.index == index]
                assert deltas[0].delta.role == "assistant"
                assert "".join(d.delta.content or "" for d in deltas) == SAID
                assert [d.finish_reason for d in deltas if d.finish_reason] == ["stop"]
                assert deltas[-1].finish_reason == "stop"
            assert len({chunk.id for chunk in chunks}) == 1

    run(test)


def test_what_clients_send_beside_the_question_is_no_fault() -> None:
    function = {"name": "add", "arguments": "{}"}
    called: Any = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }
    answer: Any = {"role": "tool", "tool_call_id": "c1", "name": "add", "content": "3"}
    tools: Any = [{"type": "function", "function": {"name": "add"}}]
    unset: Any = {"audio": None, "stream_options": None, "functions": None, "verbosity": None}

    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:
            first = await api.chat.completions.create(
                model="fake", messages=HELLO, extra_body=unset, stop=[], logprobs=False
            )
            # An answer's own dump, its nulls with it, is an earlier turn; and so is a tool's answer
            # that repeats the function's name, which its call says already.
            turns = [*HELLO, first.choices[0].message.model_dump(), *HELLO, called, answer]
            told = await api.chat.completions.create(
                model="fake", messages=turns, tools=tools, max_tokens=1, service_tier="auto"
            )
            assert told.choices[0].finish_reason == "length"
            for name, other in (("mul", answer), ("ann", {"role": "user", "content": "Hello"})):
                with pytest.raises(openai.BadRequestError) as caught:
                    await api.chat.completions.create(
                        model="fake", messages=[*HELLO, called, {**other, "name": name}]
                    )
                assert caught.value.param == "messages[2].name"

    run(test)


def test_completions_take_text_and_ids_whole_and_streamed() -> None:
    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:
            text = await api.completions.create(
                model="fake", prompt="Hello there", logprobs=1, max_tokens=16
            )
            assert text.choices[0].text == "Hello there"
            logprobs = text.choices[0].logprobs
            assert logprobs is not None and logprobs.tokens is not None
            assert logprobs.tokens[:2] == ["Hello", " there"]
            assert logprobs.text_offset == [0, 5, 11]
            ids = await api.completions.create(model="fake", prompt=[300, 301], max_tokens=1)
            assert ids.choices[0].finish_reason == "length"
            stream = await api.completions.create(
                model="fake", prompt=["Hello there"], stream=True, stop=" there"
            )
            chunks = [chunk async for chunk in stream]
            assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello"
            assert chunks[-1].choices[0].finish_reason == "stop"

    run(test)


def test_several_prompts_are_one_answer_whole_and_streamed() -> None:
    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:
            asked: Any = {"model": "fake", "prompt": ["Hello", "Hello there"], "n": 2, "seed": 1}
            headers = {"x-request-id": "mine"}
            told = await api.completions.create(**asked, logprobs=0, extra_headers=headers)
            texts = ["Hello", "Hello", "Hello there", "Hello there"]
            assert [(one.index, one.text) for one in told.choices] == list(enumerate(texts))
            assert told.id == "cmpl-mine" and told.usage is not None
            assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (3, 10)
            stream = await api.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            )
            joined, ends = [""] * 4, 0
            async for chunk in stream:
                for choice in chunk.choices:
                    joined[choice.index] += choice.text
                    ends += choice.finish_reason is not None
            assert (joined, ends) == (texts, 4)
            assert chunk.usage is not None and chunk.usage.prompt_tokens == 3
            stats = await running.idle()
            assert stats.requests.accepted == 8
            ids = await api.completions.create(model="fake", prompt=[[300], [301, 300]])
            assert len(ids.choices) == 2

    run(test)


def test_one_bad_prompt_of_several_ends_them_all_and_is_named() -> None:
    device = Device()

    async def test() -> None:
        async with serving(device, http=True) as running, client(running) as api:
            device.hold()
            with pytest.raises(openai.BadRequestError) as caught:
                await api.completions.create(model="fake", prompt=["Hello", ""], max_tokens=9)
            assert caught.value.param == "prompt[1]"
            device.release()
            stats = await running.idle()
            assert running.server.ledger.rpcs["Generate", "INVALID_ARGUMENT"] == 1
            assert stats.requests.accepted in (0, 1)  # as far as the first had come

    run(test)


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_several_prompts_ends_them_all(stream: bool) -> None:
    device = Device()

    async def test() -> None:
        async with serving(device, http=True) as running, client(running) as api:
            device.hold()
            call = asyncio.create_task(
                api.completions.create(model="fake", prompt=["a b", "c d"], stream=stream)
            )
            await running.until(lambda stats: stats.requests.accepted == 2)
            call.cancel()
            [told] = await asyncio.gather(call, return_exceptions=True)
            if not isinstance(told, BaseException):  # its answer has begun
                await told.close()
            await until(lambda: running.server.ledger.rpcs["Generate", "CANCELLED"] >= 2)
            device.release()
            await running.idle()

    run(test)


def test_tokenize_is_the_call_of_that_name() -> None:
    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:

            async def asked(path: str, **body: Any) -> Any:
                return await api.post(f"{running.url}{path}", body=body, cast_to=object)

            assert (await asked("/tokenize", model="fake", prompt="Hello"))["count"] == 1
            for path, field, body in (
                ("/tokenize", "prompt", {}),
                ("/tokenize", "messages[0].role", {"messages": [{"role": "x", "content": "y"}]}),
                ("/tokenize", "reasoning_effort", {"messages": HELLO, "reasoning_effort": "low"}),
                ("/detokenize", "tokens", {}),
                ("/detokenize", "tokens[1]", {"tokens": [1, 5000]}),
                ("/detokenize", "wit", {"tokens": [1], "wit": 1}),
            ):
                with pytest.raises(openai.BadRequestError) as caught:
                    await asked(path, **body)
                assert caught.value.param == field
            with pytest.raises(openai.NotFoundError):
                await asked("/tokenize", model="another", prompt="a")
            told = running.server.ledger.rpcs
            assert (told["Tokenize", "OK"], told["Tokenize", "INVALID_ARGUMENT"]) == (1, 3)
            assert (told["Tokenize", "NOT_FOUND"], told["Detokenize", "INVALID_ARGUMENT"]) == (1, 3)

    run(test)


def test_models_tokens_health_version_and_metrics() -> None:
    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:
            [model] = (await api.models.list()).data
            assert model.id == "fake" and (await api.models.retrieve("fake")).id == "fake"
            with pytest.raises(openai.NotFoundError):
                await api.models.retrieve("another")
            told: Any = await api.post(
                f"{running.url}/tokenize", body={"prompt": "Hello there"}, cast_to=object
            )
            assert (told["count"], told["max_model_len"]) == (2, 2048)
            back: Any = await api.post(
                f"{running.url}/detokenize", body={"tokens": told["tokens"]}, cast_to=object
            )
            assert back == {"prompt": "Hello there"}
            chat: Any = await api.post(
                f"{running.url}/tokenize", body={"messages": HELLO}, cast_to=object
            )
            answer = await api.chat.completions.create(model="fake", messages=HELLO)
            assert answer.usage is not None and answer.usage.prompt_tokens == chat["count"]
            assert await api.get(f"{running.url}/health", cast_to=object) == {"status": "ready"}
            version: Any = await api.get(f"{running.url}/version", cast_to=object)
            assert version["version"]
            page = (await api.get(f"{running.url}/metrics", cast_to=str)).replace(" ", "=")
            assert 'quire_rpcs_total{code="OK",method="Generate"}=1.0' in page

    run(test)


def test_the_client_without_async_works_too() -> None:
    async def test() -> None:
        async with serving(http=True) as running:

            def calls() -> tuple[str, str]:
                with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as api:
                    whole = api.chat.completions.create(model="fake", messages=HELLO)
                    stream = api.chat.completions.create(model="fake", messages=HELLO, stream=True)
                    joined = "".join(c.choices[0].delta.content or "" for c in stream)
                    return whole.choices[0].message.content or "", joined

            assert await asyncio.to_thread(calls) == (SAID, SAID)

    run(test)


class Traces:
    """Keeps what ended."""

    active = True

    def __init__(self) -> None:
        self.calls: list[EndedCall] = []

    def ended(self, call: EndedCall) -> None:
        self.calls.append(call)

    def close(self) -> None:
        """Nothing."""


def test_calls_are_traced_under_what_their_headers_name() -> None:
    traces, parent = Traces(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def test() -> None:
        async with serving(http=True, tracer=traces) as running, client(running) as api:
            headers = {"traceparent": parent, "x-request-id": "mine"}
            told = await api.chat.completions.create(
                model="fake", messages=HELLO, extra_headers=headers
            )
            assert told.id == "chatcmpl-mine"
            with pytest.raises(openai.BadRequestError, match="messages: is empty: at least one"):
                await api.chat.completions.create(model="fake", messages=[])

    run(test)
    good, bad = traces.calls
    assert dict(good.metadata)["traceparent"] == parent
    assert (good.attributes["quire.request_id"], good.code.name) == ("mine", "OK")
    assert bad.code.name == "INVALID_ARGUMENT"
    assert good.name == bad.name == "POST /v1/chat/completions"
    for call, status in ((good, 200), (bad, 400)):
        assert call.attributes["http.request.method"] == "POST"
        assert call.attributes["http.route"] == "/v1/chat/completions"
        assert call.attributes["http.response.status_code"] == status
        assert not any(name.startswith("rpc.") for name in call.attributes)
