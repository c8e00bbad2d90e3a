"""OpenAI's bodies: every field arrives, and what cannot is refused by its name."""

from typing import Any

import pytest
from google.protobuf import text_format

from quire.clients.openai_body import CHATS, COMPLETIONS, BodyError, read_body
from quire.v1 import inference_pb2 as pb

USER = {"role": "user", "content": "Hi"}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def chat(**body: Any) -> pb.GenerateRequest:
    return read_body(CHATS, {"messages": [USER], **body})


def expected(text: str) -> pb.GenerateRequest:
    return text_format.Parse(text, pb.GenerateRequest())


@pytest.mark.parametrize(
    ("body", "request_text"),
    [
        ({"model": "m"}, 'model: "m"'),
        ({"temperature": 0, "top_p": 0.5}, "sampling { temperature: 0 top_p: 0.5 }"),
        (
            {"presence_penalty": -1.5, "frequency_penalty": 2},
            "sampling { presence_penalty: -1.5 frequency_penalty: 2 }",
        ),
        ({"max_tokens": 7}, "sampling { max_tokens: 7 }"),
        ({"max_completion_tokens": 7}, "sampling { max_tokens: 7 }"),
        ({"n": 3, "seed": 5}, "sampling { n: 3 seed: 5 }"),
        ({"seed": -1}, f"sampling {{ seed: {2**64 - 1} }}"),
        ({"stop": "a"}, 'sampling { stop: "a" }'),
        ({"stop": ["a", "b"]}, 'sampling { stop: "a" stop: "b" }'),
        ({"logprobs": True}, "sampling { logprobs: 0 }"),
        ({"logprobs": True, "top_logprobs": 4}, "sampling { logprobs: 4 }"),
        ({"top_logprobs": 4, "logprobs": True}, "sampling { logprobs: 4 }"),
        ({"logprobs": False, "stream": False, "user": None, "tools": None}, ""),
        ({"response_format": {"type": "text"}}, ""),
        ({"response_format": {"type": "json_object"}}, "constraint { json_object: true }"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": {"b": 1, "a": 25.0}},
                }
            },
            r'constraint { json_schema: "{\"b\": 1, \"a\": 25.0}" }',
        ),
    ],
)
def test_a_field_of_a_chat_arrives(body: dict[str, Any], request_text: str) -> None:
    want = expected(request_text)
    want.chat.messages.add(role="user", content="Hi")
    assert chat(**body) == want


@pytest.mark.parametrize(
    ("messages", "chat_text"),
    [
        (
            [{"role": "developer", "content": "Be."}, USER],
            'messages { role: "system" content: "Be." } messages { role: "user" content: "Hi" }',
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": part} for part in "Hi"]}],
            'messages { role: "user" content: "Hi" }',
        ),
        (
            [
                {
                    "role": "assistant",
                    "content": None,
                    "refusal": None,
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"x": 25.0}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "wet"},
            ],
            r"""messages { role: "assistant"
                  tool_calls { id: "c1" name: "weather" arguments_json: "{\"x\": 25.0}" } }
                messages { role: "tool" tool_call_id: "c1" content: "wet" }""",
        ),
    ],
)  # fmt: skip
def test_messages_arrive(messages: list[Any], chat_text: str) -> None:
    assert read_body(CHATS, {"messages": messages}) == expected(f"chat {{ {chat_text} }}")


@pytest.mark.parametrize(
    ("choice", "choice_text"),
    [
        ("auto", "mode: TOOL_CHOICE_MODE_AUTO"),
        ("none", "mode: TOOL_CHOICE_MODE_NONE"),
        ("required", "mode: TOOL_CHOICE_MODE_REQUIRED"),
        ({"type": "function", "function": {"name": "weather"}}, 'name: "weather"'),
    ],
)
def test_tools_and_the_choice_among_them_arrive(choice: Any, choice_text: str) -> None:
    strict = {"type": "function", "function": {"name": "time", "strict": True, "description": "T"}}
    got = chat(tools=[WEATHER, strict], tool_choice=choice, parallel_tool_calls=False)
    assert got == expected(rf"""
        chat {{ messages {{ role: "user" content: "Hi" }}
          tools {{ name: "weather" parameters_json: "{{\"type\": \"object\"}}" }}
          tools {{ name: "time" description: "T" strict: true }}
          tool_choice {{ {choice_text} }} parallel_tool_calls: false }}""")


@pytest.mark.parametrize(
    ("body", "request_text"),
    [
        ({"prompt": "Once"}, 'text: "Once" sampling { max_tokens: 16 }'),
        ({"prompt": ["Once"]}, 'text: "Once" sampling { max_tokens: 16 }'),
        ({"prompt": [1, 2]}, "token_ids { ids: 1 ids: 2 } sampling { max_tokens: 16 }"),
        ({"prompt": [[1, 2]]}, "token_ids { ids: 1 ids: 2 } sampling { max_tokens: 16 }"),
        (
            {"prompt": "Once", "max_tokens": 3, "logprobs": 2},
            'text: "Once" sampling { max_tokens: 3 logprobs: 2 }',
        ),
    ],
)
def test_a_completion_arrives(body: dict[str, Any], request_text: str) -> None:
    assert read_body(COMPLETIONS, body) == expected(request_text)


@pytest.mark.parametrize(
    ("url", "body", "param", "words"),
    [
        (CHATS, {}, "messages", "is missing"),
        (CHATS, {"messages": [USER], "frobnicate": 1}, "frobnicate", "not supported"),
        (CHATS, {"messages": [USER], "prompt": "x"}, "prompt", "not supported"),
        (CHATS, {"messages": USER}, "messages", "a list of messages, not dict"),
        (CHATS, {"messages": [3]}, "messages[0]", "a message, not int"),
        (CHATS, {"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        (
            CHATS,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "only parts of type 'text'",
        ),
        (CHATS, {"messages": [USER], "temperature": "hot"}, "temperature", "a number, not str"),
        (CHATS, {"messages": [USER], "n": -1}, "n", "not between"),
        (CHATS, {"messages": [USER], "stream": True}, "stream", "whole"),
        (CHATS, {"messages": [USER], "top_logprobs": 3}, "top_logprobs", "logprobs = true"),
        (CHATS, {"messages": [USER], "tool_choice": "auto"}, "tool_choice", "goes with tools"),
        (
            CHATS,
            {"messages": [USER], "tools": [WEATHER], "tool_choice": "maybe"},
            "tool_choice",
            "'maybe'",
        ),
        (CHATS, {"messages": [USER], "tools": [{"type": "web"}]}, "tools[0].function", "None"),
        (
            CHATS,
            {"messages": [USER], "max_tokens": 1, "max_completion_tokens": 1},
            "max_tokens",
            "give one",
        ),
        (CHATS, {"messages": [USER], "response_format": "json"}, "response_format", "an object"),
        (
            CHATS,
            {"messages": [USER], "response_format": {"type": "yaml"}},
            "response_format.type",
            "'yaml'",
        ),
        (
            CHATS,
            {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
            "is missing",
        ),
        (
            CHATS,
            {"messages": [USER], "response_format": {"type": "text", "also": 1}},
            "response_format.also",
            "not supported",
        ),
        (COMPLETIONS, {}, "prompt", "is missing"),
        (COMPLETIONS, {"prompt": ["a", "b"]}, "prompt", "2 prompts"),
        (COMPLETIONS, {"prompt": [1, "b"]}, "prompt[1]", "a whole number, not str"),
        (COMPLETIONS, {"prompt": []}, "prompt", "a text or token ids"),
        (COMPLETIONS, {"prompt": "a", "echo": True}, "echo", "not supported"),
        (COMPLETIONS, {"prompt": "\ud800"}, "prompt", "surrogate"),
    ],
)
def test_what_cannot_be_asked_is_named(
    url: str, body: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(BodyError) as caught:
        read_body(url, body)
    assert caught.value.param == param and words in str(caught.value)
