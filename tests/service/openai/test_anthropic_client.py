"""/v1/messages as Anthropic's own Python client uses it, against the HTTP API."""

import asyncio
import logging
from pathlib import Path
from typing import Any, Literal

import anthropic
import pydantic
import pytest
from anthropic import beta_async_tool
from anthropic.types import Message
from support.api_keys import ALICE, BOB, key_file
from support.fake_engine import Device
from support.harness import Running, run, serving
from support.held_calls import until
from support.http1 import ask, head, posted
from support.scripted import ScriptedDevice, ids_of, serving_template
from support.tool_templates import FORGETFUL, HERMES

from quire.service.constraints.grammars import Grammars

SAID = "user\nHello"  # the device says the prompt back
PATH = "/v1/messages"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
ASKED: Any = {"model": "fake", "max_tokens": 100, "messages": HELLO}
CALL = '<tool_call>\n{{"name": "add", "arguments": {{"a": {}}}}}\n</tool_call>'
THOUGHT = "<think>\nHm.\n</think>\n\n"
ONE_UNREAD: Any = {
    "tools": [{"name": "add", "input_schema": {}}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "extra_body": {"parse_output": False},
}
ADD: Any = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}


def client(running: Running, key: str = "none") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=running.url, api_key=key, max_retries=0)


def content(told: Message) -> list[dict[str, Any]]:
    """Without the ids of calls, which are drawn."""
    return [{**block.to_dict(), "id": ""} for block in told.content]


def prompt_tokens(told: Message) -> int:
    return told.usage.input_tokens + (told.usage.cache_read_input_tokens or 0)


def test_a_message_is_answered_whole_and_streamed_and_counted() -> None:
    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:
            told = await api.messages.create(**ASKED, extra_headers={"x-request-id": "mine"})
            assert (told.id, told.model, told.role) == ("msg_mine", "fake", "assistant")
            assert told._request_id == "mine"
            assert (told.content[0].to_dict(), told.stop_reason) == (
                *({"type": "text", "text": SAID}, "end_turn"),
            )
            async with api.messages.stream(**ASKED) as stream:
                assert "".join([text async for text in stream.text_stream]) == SAID
                final = await stream.get_final_message()
            assert final.id == f"msg_{stream.request_id}"
            assert final.usage.output_tokens == told.usage.output_tokens
            assert final.usage.cache_read_input_tokens and not told.usage.cache_read_input_tokens
            count = await api.messages.count_tokens(model="fake", messages=HELLO)
            assert count.input_tokens == prompt_tokens(told) == prompt_tokens(final)
            stopped = await api.messages.create(**ASKED, stop_sequences=["llo", "x"])
            assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "llo")
            short = await api.messages.create(**{**ASKED, "max_tokens": 1})
            assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 1)

    run(test)


def test_a_message_of_a_schema_is_parsed() -> None:
    class Person(pydantic.BaseModel):
        name: Literal["Mira"]

    async def test() -> None:
        matchers = Grammars(1)
        async with serving(http=True, matchers=matchers) as running, client(running) as api:
            told = await api.messages.parse(**ASKED, output_format=Person)
            assert told.parsed_output == Person(name="Mira")

    run(test)


def test_thoughts_and_parallel_calls_come_and_go_back_whole_and_streamed(tmp_path: Path) -> None:
    device = ScriptedDevice(f"{THOUGHT}So:\n{CALL.format(1)}\n{CALL.format(2)}")

    async def test() -> None:
        async with (
            serving_template(HERMES, tmp_path, device, http=True) as running,
            client(running) as api,
        ):
            asked: Any = {"model": "scripted", "max_tokens": 200, "tools": [ADD]}
            told = await api.messages.create(**asked, messages=HELLO)
            async with api.messages.stream(**asked, messages=HELLO) as stream:
                final = await stream.get_final_message()
            assert content(final) == content(told) and final.stop_reason == "tool_use"
            assert content(told) == [
                {"type": "thinking", "thinking": "Hm.", "signature": "", "id": ""},
                {"type": "text", "text": "So:", "id": ""},
                *({"type": "tool_use", "id": "", "name": "add", "input": {"a": a}} for a in (1, 2)),
            ]
            assert told.usage.output_tokens_details is not None
            thoughts = len(ids_of(THOUGHT.rstrip("\n")))
            assert told.usage.output_tokens_details.thinking_tokens == thoughts
            calls = [block for block in told.content if block.type == "tool_use"]
            results: list[Any] = [
                {"type": "tool_result", "tool_use_id": call.id, "content": "3"} for call in calls
            ]
            turns: Any = [
                *HELLO,
                {"role": "assistant", "content": told.content},
                {"role": "user", "content": [*results, {"type": "text", "text": "Go on"}]},
            ]
            device.tell("It is 3.")
            again = await api.messages.create(**asked, messages=turns)
            assert again.content[0].to_dict()["text"] == "It is 3."
            count = await api.messages.count_tokens(
                model="fake", messages=turns, tools=[ADD], thinking={"type": "adaptive"}
            )
            function = {"name": "add", "description": "Adds.", "parameters": ADD["input_schema"]}
            made = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": "add", "arguments": f'{{"a": {a}}}'},
                }
                for a, call in enumerate(calls, 1)
            ]
            turn = {"role": "assistant", "content": "So:", "reasoning": "Hm.", "tool_calls": made}
            answers = [{"role": "tool", "tool_call_id": c.id, "content": "3"} for c in calls]
            chat: Any = await api.post(
                "/tokenize",
                body={
                    "messages": [*HELLO, turn, *answers, {"role": "user", "content": "Go on"}],
                    "tools": [{"type": "function", "function": function}],
                },
                cast_to=object,
            )
            assert count.input_tokens == prompt_tokens(again) == chat["count"]

    run(test)


def test_the_clients_own_loop_over_tools_needs_nothing_stored(tmp_path: Path) -> None:
    """It asks for a conversation that the server keeps, and goes on without one."""
    device = ScriptedDevice(CALL.format(1))
    seen: list[int] = []

    @beta_async_tool
    async def add(a: int) -> str:
        """Adds."""
        seen.append(a)
        device.tell("It is 1.")
        return "1"

    async def test() -> None:
        async with (
            serving_template(HERMES, tmp_path, device, http=True) as running,
            client(running) as api,
        ):
            runner = api.beta.messages.tool_runner(
                model="scripted", max_tokens=100, messages=HELLO, tools=[add]
            )
            told = [message async for message in runner]
            assert seen == [1] and told[-1].content[0].to_dict()["text"] == "It is 1."

    run(test)


def test_what_the_model_has_begun_is_continued_and_thoughts_are_left_out_where_none_are_shown(
    tmp_path: Path,
) -> None:
    device = ScriptedDevice("Hm.\n</think>\n\nIt is 3.")

    async def test() -> None:
        async with (
            serving_template(FORGETFUL, tmp_path, device, http=True) as running,
            client(running) as api,
        ):
            asked: Any = {"model": "scripted", "max_tokens": 100}
            told = await api.messages.create(**asked, messages=HELLO)
            assert [block.type for block in told.content] == ["thinking", "text"]
            plain: Any = {"role": "assistant", "content": "It is 3."}
            turns: list[Any] = [{"role": "assistant", "content": told.content}, plain]
            counts = [
                await api.messages.count_tokens(model="fake", messages=[*HELLO, turn, *HELLO])
                for turn in turns
            ]
            assert counts[0] == counts[1]
            device.tell(" Or 4.")
            more = await api.messages.create(**asked, messages=[*HELLO, plain])
            assert more.content[0].to_dict()["text"] == " Or 4."

    run(test)


def test_refusals_have_this_apis_form_and_names() -> None:
    room = "max_tokens: input length and `max_tokens` exceed context limit: "  # clients read it
    begun = {"role": "assistant", "content": [{"type": "text", "text": "x"}]}
    called = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "d", "content": "x"}
    turns = [{"role": "assistant", "content": [called]}, {"role": "user", "content": [result]}]
    marked = [{"role": "user", "content": [{"type": "text", "text": "<|im_end|>"}]}, begun]

    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:
            for words, fields in (
                ("temperature: -1.0: ", {"extra_body": {"temperature": -1}}),
                ("max_tokens: 0: ", {"max_tokens": 0}),
                (f"{room}9 + 20000 > 2048: at most 2039 fit", {"max_tokens": 20_000}),
                ("messages: the prompt is too long", {"messages": [HELLO[0]] * 500}),
                ("messages: the prompt is too long", {"messages": [HELLO[0]] * 3000}),
                ("messages[1].content[0].tool_use_id: ", {"messages": turns}),
                ("messages[0].content: ", {"messages": marked}),
                ("messages[0].content[0].type: 'image': ", {"messages": [image()]}),
                ("system: ", {"system": "<|im_end|>"}),
                ("(high is as if unset", {"output_config": {"effort": "low"}}),
                ("tools[0].name: ", {"tools": [{"name": "", "input_schema": {}}]}),
                ("tool_choice.disable_parallel_tool_use: calls are not read", ONE_UNREAD),
                ("messages[1]: the last message calls tools", {"messages": [*HELLO, turns[0]]}),
                ("x-request-id: ", {"extra_headers": {"x-request-id": "a b"}}),
            ):
                for stream in (False, True):
                    with pytest.raises(anthropic.BadRequestError) as caught:
                        await api.messages.create(**{**ASKED, **fields}, stream=stream)
                    told: Any = caught.value.body
                    assert told["type"] == "error"
                    assert told["error"]["type"] == "invalid_request_error"
                    assert words in told["error"]["message"]
            with pytest.raises(anthropic.NotFoundError, match="is not served here"):
                await api.messages.create(**{**ASKED, "model": "another"})
            with pytest.raises(anthropic.NotFoundError, match="is not served here"):
                await api.messages.count_tokens(model="another", messages=HELLO)
            with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content"):
                await api.messages.count_tokens(model="fake", messages=marked)  # type: ignore[arg-type]
            with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
                await api.messages.batches.list()
            told = await ask(running.server.http_port, head("GET", PATH))
            assert (told.status, told.headers["allow"]) == (405, "POST")
            assert told.json["error"]["type"] == "invalid_request_error"
            told = await ask(running.server.http_port, posted(PATH, b"{"))
            assert (told.status, told.json["type"]) == (400, "error")

    run(test)


def image() -> Any:
    source = {"type": "base64", "media_type": "image/png", "data": ""}
    return {"role": "user", "content": [{"type": "image", "source": source}]}


def test_limits_and_the_end_of_the_server_are_told_so_that_clients_try_again() -> None:
    async def test() -> None:
        limits = {"rate_limit_requests": 1e-4, "rate_limit_burst_seconds": 1e4}
        async with serving(http=True, **limits) as running, client(running) as api:
            await api.messages.create(**ASKED)
            with pytest.raises(anthropic.RateLimitError) as caught:
                await api.messages.create(**ASKED)
            assert "rate_limit_error" in str(caught.value)
            assert int(caught.value.response.headers["retry-after"]) >= 1
            await running.server.drain()
            with pytest.raises(anthropic.InternalServerError, match="overloaded_error") as leaving:
                await api.messages.create(**ASKED)
            assert leaving.value.status_code == 503

    run(test)


def test_a_key_comes_in_either_header_and_only_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def test() -> None:
        async with serving(http=True, api_keys=str(key_file(tmp_path))) as running:
            port = running.server.http_port

            async def status(path: str = PATH, **headers: str) -> int:
                return (await ask(port, posted(path, ASKED, **headers))).status

            alice = f"Bearer {ALICE}"
            assert await status(authorization=alice) == 200
            assert await status(x_api_key=ALICE) == 200
            for same in (alice, f"bearer {ALICE}", f"BEARER  {ALICE}"):
                assert await status(x_api_key=ALICE, authorization=same) == 200
            empty = posted(PATH, ASKED, x_api_key=ALICE).replace(
                b"x-api", b"authorization:\r\nx-api"
            )
            assert (await ask(port, empty)).status == 200
            assert await status(x_api_key=ALICE, authorization=f"Bearer {BOB}") == 401
            assert await status(x_api_key=BOB[::-1]) == await status() == 401
            counted = {"model": "fake", "messages": HELLO}
            told = await ask(port, posted(f"{PATH}/count_tokens", counted, x_api_key=BOB))
            assert told.status == 200
            assert await status("/v1/chat/completions", x_api_key=ALICE) == 401
            told = await ask(port, head("POST", PATH, content_length="1000"))  # no body comes
            assert (told.status, told.json["error"]["type"]) == (401, "authentication_error")
            async with client(running, BOB) as api:
                await api.messages.create(**ASKED)

    run(test)
    ended = [r for r in caplog.records if r.getMessage() == "request ended"]
    names = [r.fields["client"] for r in ended]  # type: ignore[attr-defined]
    assert names == [*["key:alice"] * 6, "key:bob"]
    assert ALICE not in caplog.text and BOB not in caplog.text


def test_a_client_that_leaves_ends_its_call() -> None:
    device = Device()

    async def test() -> None:
        async with serving(device, http=True) as running, client(running) as api:
            device.hold()
            call = asyncio.create_task(api.messages.create(**ASKED))
            await running.until(lambda stats: stats.requests.running == 1)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await until(lambda: running.server.ledger.rpcs["Generate", "CANCELLED"] > 0)
            device.release()
            await running.idle()

    run(test)


def test_a_failed_step_is_a_status_before_the_answer_and_an_event_within_it() -> None:
    device = Device()

    async def test() -> None:
        async with serving(device, http=True) as running, client(running) as api:
            device.fail = ValueError("a fault")
            with pytest.raises(anthropic.InternalServerError, match="its log knows it") as refused:
                await api.messages.create(**ASKED)
            assert refused.value.request_id
            device.fail_after(20)
            stream = await api.messages.create(
                **ASKED, stream=True, extra_body={"ignore_eos": True}
            )
            with pytest.raises(anthropic.APIStatusError, match="its log knows it") as caught:
                async for _ in stream:
                    pass
            told: Any = caught.value.body
            assert told["error"]["type"] == "api_error" and told["request_id"]
            await running.idle()

    run(test)
