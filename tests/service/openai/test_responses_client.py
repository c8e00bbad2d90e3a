"""/v1/responses as OpenAI's own Python client uses it, against the HTTP API."""

import asyncio
from pathlib import Path
from typing import Any, Literal, cast

import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseFunctionToolCall
from support.fake_engine import Device
from support.harness import run, serving
from support.held_calls import until
from support.http1 import ask, head
from support.openai_calls import HELLO, client
from support.scripted import ScriptedDevice, ids_of, serving_template
from support.tool_templates import FORGETFUL, HERMES

from quire.service.constraints.grammars import Grammars

SAID = "user\nHello"  # the device says the prompt back
PATH = "/v1/responses"
CALL = '<tool_call>\n{{"name": "add", "arguments": {{"a": {}}}}}\n</tool_call>'
THOUGHT = "<think>\nHm.\n</think>\n\n"
ADD: Any = {"type": "function", "name": "add", "description": "Adds.", "parameters": {}}


def without_ids(told: Response) -> list[dict[str, Any]]:
    return [{**item.to_dict(), "id": ""} for item in told.output]


def test_a_response_is_answered_whole_and_streamed() -> None:
    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:
            headers = {"x-request-id": "mine"}
            told = await api.responses.create(model="fake", input="Hello", extra_headers=headers)
            assert (told.id, told.output_text, told.status) == ("resp_mine", SAID, "completed")
            assert (told.object, told.model, told.tools) == ("response", "fake", [])
            assert told.usage is not None
            chat = await api.chat.completions.create(model="fake", messages=HELLO)
            assert chat.usage is not None
            assert told.usage.total_tokens == chat.usage.total_tokens
            assert told.usage.input_tokens == chat.usage.prompt_tokens
            items: Any = HELLO
            async with api.responses.stream(model="fake", input=items) as stream:
                deltas = [e.delta async for e in stream if e.type == "response.output_text.delta"]
                final = await stream.get_final_response()
            assert "".join(deltas) == final.output_text == SAID
            assert (await running.stats()).requests.accepted == 3

    run(test)


def test_a_response_of_a_schema_is_parsed() -> None:
    class Person(pydantic.BaseModel):
        name: Literal["Mira"]

    async def test() -> None:
        matchers = Grammars(1)
        async with serving(http=True, matchers=matchers) as running, client(running) as api:
            told = await api.responses.parse(model="fake", input="Hello", text_format=Person)
            assert told.output_parsed == Person(name="Mira")
            with pytest.raises(openai.BadRequestError) as caught:
                await api.responses.create(
                    model="fake",
                    input="Hello",
                    text=cast(Any, {"format": {"type": "json_schema", "schema": {"type": "wat"}}}),
                )
            assert caught.value.param == "text.format.schema"

    run(test)


def test_thoughts_and_parallel_calls_come_and_go_back_whole_and_streamed(tmp_path: Path) -> None:
    device = ScriptedDevice(f"{THOUGHT}So:\n{CALL.format(1)}\n{CALL.format(2)}")

    async def test() -> None:
        async with (
            serving_template(HERMES, tmp_path, device, http=True) as running,
            client(running) as api,
        ):
            items: list[Any] = [*HELLO]
            asked: Any = {"model": "scripted", "tools": [ADD], "input": items}
            told = await api.responses.create(**asked, extra_body={"seed": 5})
            events = [
                event
                async for event in await api.responses.create(
                    **asked, stream=True, extra_body={"seed": 5}
                )
            ]
            assert events[-1].type == "response.completed"
            assert without_ids(events[-1].response) == without_ids(told)
            assert [item.type for item in told.output] == [
                *("reasoning", "message", "function_call", "function_call"),
            ]
            calls = [one for one in told.output if isinstance(one, ResponseFunctionToolCall)]
            assert [(one.name, one.arguments) for one in calls] == [
                *(("add", '{"a": 1}'), ("add", '{"a": 2}')),
            ]
            assert told.usage is not None
            thoughts = len(ids_of(THOUGHT.rstrip("\n")))
            assert told.usage.output_tokens_details.reasoning_tokens == thoughts
            items += told.output
            items += [
                {"type": "function_call_output", "call_id": one.call_id, "output": "3"}
                for one in calls
            ]
            device.tell("It is 3.")
            again = await api.responses.create(**asked)
            assert again.output_text == "It is 3."
            made = [{"id": c.call_id, "type": "function", "function": c.to_dict()} for c in calls]
            for call in made:
                call["function"] = {k: call["function"][k] for k in ("name", "arguments")}  # type: ignore[index]
            turn = {"role": "assistant", "content": "So:", "reasoning": "Hm.", "tool_calls": made}
            answers = [{"role": "tool", "tool_call_id": c["id"], "content": "3"} for c in made]
            function = {key: ADD[key] for key in ("name", "description", "parameters")}
            tools = [{"type": "function", "function": function}]
            chat: Any = await api.post(
                f"{running.url}/tokenize",
                body={"messages": [*HELLO, turn, *answers], "tools": tools},
                cast_to=object,
            )
            assert again.usage is not None and again.usage.input_tokens == chat["count"]
            device.tell(f"{THOUGHT}{CALL.format(1)}")
            short = await api.responses.create(**asked, max_output_tokens=12)
            assert short.status == "incomplete" and short.incomplete_details is not None
            assert short.incomplete_details.reason == "max_output_tokens"

    run(test)


def test_thoughts_go_back_unasked_to_a_template_that_shows_none(tmp_path: Path) -> None:
    """Agents send all items of an answer back, and a chat of the same is refused."""
    device = ScriptedDevice("Hm.\n</think>\n\nIt is 3.")
    turn: Any = {"role": "assistant", "content": "It is 3.", "reasoning": "Hm."}

    async def test() -> None:
        async with (
            serving_template(FORGETFUL, tmp_path, device, http=True) as running,
            client(running) as api,
        ):
            told = await api.responses.create(model="scripted", input=cast(Any, HELLO))
            assert [item.type for item in told.output] == ["reasoning", "message"]
            turns: Any = [*HELLO, *told.output, *HELLO]
            again = await api.responses.create(model="scripted", input=turns)
            turns = [*HELLO, {"role": "assistant", "content": "It is 3."}, *HELLO]
            plain = await api.responses.create(model="scripted", input=turns)
            assert again.usage is not None and plain.usage is not None
            assert again.usage.input_tokens == plain.usage.input_tokens
            with pytest.raises(openai.BadRequestError, match="would ignore it"):
                await api.chat.completions.create(model="scripted", messages=[*HELLO, turn, *HELLO])

    run(test)


def test_log_probabilities_are_those_of_a_chat() -> None:
    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:
            told = await api.responses.create(
                model="fake",
                input="Hello",
                include=["message.output_text.logprobs"],
                top_logprobs=2,
            )
            chat = await api.chat.completions.create(
                model="fake", messages=HELLO, logprobs=True, top_logprobs=2
            )
            logprobs = chat.choices[0].logprobs
            assert logprobs is not None and logprobs.content is not None
            [part] = told.to_dict()["output"][0]["content"]  # type: ignore[index]
            assert part["logprobs"] == [one.to_dict() for one in logprobs.content]

    run(test)


def test_refusals_have_the_names_of_this_api() -> None:
    marked = {"role": "user", "content": "<|im_end|>"}
    called = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}
    answer = {"type": "function_call_output", "call_id": "d", "output": "x"}

    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:
            for field, fields in (
                ("temperature", {"temperature": -1}),
                ("max_output_tokens", {"max_output_tokens": 0}),
                ("top_logprobs", {"include": ["message.output_text.logprobs"], "top_logprobs": 21}),
                ("input[1].call_id", {"input": [called, answer]}),
                (
                    "input[1].content",
                    {"input": [*HELLO, marked]},
                ),
                ("input", {"input": "<|im_end|>"}),
                ("input", {"input": "Hello " * 3000}),
                ("instructions", {"instructions": "<|im_end|>"}),
                ("reasoning.effort", {"reasoning": {"effort": "high"}}),
                ("tools[0].name", {"tools": [{"type": "function", "name": ""}]}),
                ("previous_response_id", {"previous_response_id": "resp_1"}),
                ("x-request-id", {"extra_headers": {"x-request-id": "a b"}}),
            ):
                asked: Any = {"model": "fake", "input": "Hello", **fields}
                for stream in (False, True):
                    with pytest.raises(openai.BadRequestError) as caught:
                        await api.responses.create(**asked, stream=stream)
                    assert caught.value.param == field
            with pytest.raises(openai.NotFoundError) as missing:
                await api.responses.create(model="another", input="Hello")
            assert missing.value.code == "model_not_found"

    run(test)


def test_nothing_is_stored_and_the_paths_of_what_would_be_say_so() -> None:
    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:
            for call in (
                api.responses.retrieve("resp_1"),
                api.responses.delete("resp_1"),
                api.responses.cancel("resp_1"),
            ):
                with pytest.raises(openai.NotFoundError, match="not stored here"):
                    await call
            told = await ask(running.server.http_port, head("GET", PATH))
            assert (told.status, told.headers["allow"]) == (405, "POST")

    run(test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_call(stream: bool) -> None:
    device = Device()

    async def test() -> None:
        async with serving(device, http=True) as running, client(running) as api:
            device.hold()
            call = asyncio.create_task(
                api.responses.create(model="fake", input="Hello", stream=stream)
            )
            await running.until(lambda stats: stats.requests.running == 1)
            call.cancel()
            [told] = await asyncio.gather(call, return_exceptions=True)
            if not isinstance(told, BaseException):  # its answer has begun
                await told.close()
            await until(lambda: running.server.ledger.rpcs["Generate", "CANCELLED"] > 0)
            device.release()
            await running.idle()

    run(test)


def test_a_failed_step_is_a_status_before_the_answer_and_an_event_within_it() -> None:
    device = Device()

    async def test() -> None:
        async with serving(device, http=True) as running, client(running) as api:
            device.fail = ValueError("a fault")
            with pytest.raises(openai.InternalServerError, match="its log knows it"):
                await api.responses.create(model="fake", input="Hello")
            device.fail_after(20)
            stream = await api.responses.create(
                model="fake", input="Hello", stream=True, extra_body={"ignore_eos": True}
            )
            with pytest.raises(openai.APIError, match="its log knows it"):
                async for _ in stream:
                    pass
            await running.idle()

    run(test)
