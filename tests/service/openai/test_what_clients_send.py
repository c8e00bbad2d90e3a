"""What other clients than OpenAI's own send unasked, as it was captured; and what they look for."""

from typing import Any

import openai
import pytest
from support.harness import run, serving
from support.openai_calls import HELLO, client

CALLED: Any = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "c1",
            "type": "function",
            "function": {"name": "add", "arguments": '{"code": "a\nb"}'},
        }
    ],
}
AGENTS: dict[str, list[Any]] = {
    "AutoGen": [
        {"role": "system", "content": "You are a helpful AI assistant."},
        {"role": "user", "name": "user", "content": "Hello"},
        {"role": "assistant", "name": "assistant", "content": "Hello!"},
        {"role": "user", "name": "user", "content": "Hello"},
    ],
    "Semantic Kernel": [
        {"role": "system", "content": "Be nice", "name": "Helper"},
        {"role": "user", "content": "Hello"},
    ],
    "LangChain, after a call that it could not read": [
        *HELLO,
        CALLED,
        {"role": "tool", "tool_call_id": "c1", "content": "Error: not valid JSON. Try again."},
    ],
}


@pytest.mark.parametrize("messages", AGENTS.values(), ids=AGENTS)
def test_what_agents_send_is_answered(messages: list[Any]) -> None:
    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:
            told = await api.chat.completions.create(model="fake", messages=messages)
            assert told.choices[0].finish_reason == "stop"

    run(test)


@pytest.mark.parametrize("effort", ["none", "medium"])
def test_an_effort_that_any_model_can_make_is_taken(effort: Any) -> None:
    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:
            asked: Any = {"model": "fake", "messages": HELLO}
            plain = await api.chat.completions.create(**asked)
            told = await api.chat.completions.create(**asked, reasoning_effort=effort)
            assert told.choices[0].message == plain.choices[0].message
            with pytest.raises(openai.BadRequestError, match="medium is as if unset") as caught:
                await api.chat.completions.create(**asked, reasoning_effort="low")
            assert caught.value.param == "reasoning_effort"

    run(test)


def test_a_conversation_that_is_too_long_is_told_as_openai_tells_it() -> None:
    async def test() -> None:
        async with serving(http=True) as running, client(running) as api:
            for size, most in ((1, 2048), (500, 2000), (3000, None), (20_000, None)):
                messages: Any = [{"role": "user", "content": " Hello" * size}]
                with pytest.raises(openai.BadRequestError, match="prompt is too long") as caught:
                    await api.chat.completions.create(
                        model="fake", messages=messages, max_tokens=most
                    )
                assert caught.value.code == "context_length_exceeded"
                assert caught.value.param == ("messages" if most is None else "max_tokens")
            for prompt in ("Hello" * 3000, [300] * 3000):
                with pytest.raises(openai.BadRequestError) as caught:
                    await api.completions.create(model="fake", prompt=prompt)
                assert (caught.value.code, caught.value.param) == (
                    "context_length_exceeded",
                    "prompt",
                )
            for text in ("Hello" * 3000, [300] * 3000):
                with pytest.raises(openai.BadRequestError) as caught:
                    await api.embeddings.create(model="fake", input=text)
                assert caught.value.code == "context_length_exceeded"

    run(test)
