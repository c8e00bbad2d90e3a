"""The body of /v1/responses: a field arrives as a chat's does, or is refused by its own name."""

import json
from pathlib import Path
from typing import Any

import pytest

from quire.clients.openai import chat, response_input, responses
from quire.clients.openai.faults import BadBody
from quire.clients.openai.responses import ResponsesBody
from quire.v1 import inference_pb2 as pb

PARAMETERS = {"z": 25.0, "a": 1}
TOOL = {"type": "function", "name": "add", "description": "Adds.", "parameters": PARAMETERS}
SCHEMA = {"type": "object"}
NAMED = {"type": "json_schema", "schema": SCHEMA}
PART = "input[0].content[0]"


def asked(**fields: Any) -> ResponsesBody:
    return responses.read({"input": "Hello", **fields})


def request(**fields: Any) -> pb.GenerateRequest:
    [read] = asked(**fields).requests
    return read


def of_chat(**fields: Any) -> pb.GenerateRequest:
    [read] = chat.read({"messages": [{"role": "user", "content": "Hello"}], **fields}).requests
    return read


def faults(**fields: Any) -> dict[str, str]:
    with pytest.raises(BadBody) as caught:
        asked(**fields)
    return dict(caught.value.faults)


def repeated(**fields: Any) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(asked(**fields).repeated)
    return told


SAME: dict[str, Any] = {  # here as in a chat
    **dict.fromkeys(("temperature", "top_p", "min_p", "presence_penalty"), 0.5),
    "seed": -1,
    "top_k": 5,
    "min_tokens": 3,
    "stop": "x",
    "priority": 5,
    "cache_salt": "s",
    "user": "u",
    "model": "m",
    "ignore_eos": True,
    "logit_bias": {"17": 2},
    "parse_output": True,
    "chat_template_kwargs": {"a": 1},
    "structured_outputs": {"regex": "a"},
}
OTHERWISE: list[tuple[dict[str, Any], dict[str, Any]]] = [  # a response's, a chat's
    ({"max_output_tokens": 7}, {"max_tokens": 7}),
    ({"reasoning": {"effort": "none"}}, {"reasoning_effort": "none"}),
    ({"reasoning": {"effort": "high", "summary": "auto"}}, {"reasoning_effort": "high"}),
    (
        {"include": ["message.output_text.logprobs"], "top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 3},
    ),
    ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}),
    ({"include": ["reasoning.encrypted_content"]}, {}),
    ({"text": {"verbosity": "medium", "format": {"type": "text"}}}, {}),
    ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
    (
        {
            "text": {
                "format": {"type": "json_schema", "name": "a", "strict": True, "schema": SCHEMA}
            }
        },
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    ),
    (
        {"tools": [{**TOOL, "strict": True}], "parallel_tool_calls": False},
        {
            "tools": [{"type": "function", "function": {**TOOL, "type": None, "strict": True}}],
            "parallel_tool_calls": False,
        },
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "name": "add"}},
        {
            "tools": [{"type": "function", "function": {**TOOL, "type": None}}],
            "tool_choice": {"type": "function", "function": {"name": "add"}},
        },
    ),
    (
        {"tools": [TOOL], "tool_choice": "required"},
        {
            "tools": [{"type": "function", "function": {**TOOL, "type": None}}],
            "tool_choice": "required",
        },
    ),
    (
        {
            "metadata": {"a": "b"},
            "store": True,
            "service_tier": "auto",
            "truncation": "disabled",
            "background": False,
            "client_metadata": {},
            "prompt_cache_retention": "24h",
            "n": 1,
            "tool_choice": "none",
            "parallel_tool_calls": False,
            "previous_response_id": None,
        },
        {},
    ),
]


@pytest.mark.parametrize("field", SAME)
def test_a_field_that_chats_have_is_the_same_here(field: str) -> None:
    assert request(**{field: SAME[field]}) == of_chat(**{field: SAME[field]}) != of_chat()


@pytest.mark.parametrize(("fields", "chats"), OTHERWISE)
def test_a_field_of_another_name_is_the_chats(
    fields: dict[str, Any], chats: dict[str, Any]
) -> None:
    assert request(**fields) == of_chat(**chats)


# ------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("fields", "name", "words"),
    [
        ({"input": None}, "input", "is missing"),
        ({"input": []}, "input", "is empty"),
        ({"input": 5}, "input", "must be a string or items"),
        ({"input": ["x"]}, "input[0]", "must be an object"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "must be one of user"),
        ({"input": [{"role": "user"}]}, "input[0].content", "is missing"),
        (
            {"input": [{"role": "user", "content": "x", "name": "y"}]},
            "input[0].name",
            "not a field",
        ),
        ({"input": [{"type": "item_reference", "id": "m"}]}, "input[0].type", "store = false"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "must be one of message"),
        ({"input": [{"type": "custom_tool_call"}]}, "input[0].type", "give a function"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f"}]},
            "input[0].arguments",
            "",
        ),
        (
            {"input": [{"type": "function_call_output", "output": "x"}]},
            "input[0].call_id",
            "missing",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c"}]},
            "input[0].output",
            "missing",
        ),
        (
            {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}]},
            "input[0].encrypted_content",
            "cannot be read here",
        ),
        ({"include": ["file_search_call.results"]}, "include[0]", "must be one of"),
        ({"top_logprobs": 2}, "top_logprobs", "message.output_text.logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "no tool runs on this server"),
        ({"tools": [{"type": "namespace", "name": "x"}]}, "tools[0].type", "functions themselves"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0].type", "its input a parameter"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function", "not a field"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "those tools alone"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "must be medium"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "must be one of"),
        (
            {"text": {"format": {"type": "json_schema"}}},
            "text.format.schema",
            "is missing",
        ),
        *(
            ({"text": {"format": {"type": "json_schema", **odd}}}, f"text.format.{name}", words)
            for odd, name, words in (
                ({"schema": "{}"}, "schema", "must be an object"),
                ({"schema": {}, "name": 5}, "name", "must be a string"),
                ({"schema": {}, "description": []}, "description", "must be a string"),
                ({"schema": {}, "strict": "no"}, "strict", "must be true or false"),
            )
        ),
        (
            {"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
            "excludes text.format",
        ),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary", "nothing is summarised"),
        (
            {"reasoning": {"effort": "none"}, "chat_template_kwargs": {"enable_thinking": True}},
            "reasoning.effort",
            "excludes chat_template_kwargs.enable_thinking",
        ),
        ({"stream_options": {}}, "stream_options", "stream = true"),
        (
            {"stream": True, "stream_options": {"include_usage": True}},
            "stream_options.include_usage",
            "not a field",
        ),
        ({"metadata": "x"}, "metadata", "must be an object"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "17 entries: at most 16"),
        ({"metadata": {"k" * 65: ""}}, "metadata", "at most 64 characters"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "at most 512 characters"),
        ({"metadata": {"k": 1}}, "metadata.k", "must be a string"),
        ({"background": True}, "background", "nothing is stored"),
        ({"truncation": "auto"}, "truncation", "a shorter input"),
        ({"previous_response_id": "r"}, "previous_response_id", "the whole conversation"),
        ({"conversation": "c"}, "conversation", "the whole conversation"),
        ({"prompt": {"id": "p"}}, "prompt", "nothing is stored"),
        ({"max_tool_calls": 1}, "max_tool_calls", "hosted tools"),
        ({"n": 2}, "n", "/v1/chat/completions"),
        ({"prompt_logprobs": 1}, "prompt_logprobs", "/v1/chat/completions"),
        ({"max_tokens": 1}, "max_tokens", "use max_output_tokens"),
        ({"messages": []}, "messages", "use input"),
        ({"wit": 1}, "wit", "not a field"),
        ({"input": [{"type": "", "role": "user", "content": "x"}]}, "input[0].type", "must be one"),
        ({"user": "u", "prompt_cache_key": "k" * 4097}, "prompt_cache_key", "at most 4096"),
        ({"reasoning": {"effort": "k" * 4097}}, "reasoning.effort", "at most 4096"),
        *(
            ({"text": {"format": {**NAMED, name: "k" * 4097}}}, f"text.format.{name}", "4096")
            for name in ("name", "description")
        ),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(
    fields: dict[str, Any], name: str, words: str
) -> None:
    told = faults(**fields)
    assert name in told and words in told[name]


@pytest.mark.parametrize("kind", ["input_image", "input_file", "input_audio", "refusal", "text"])
def test_a_part_that_is_no_text_is_refused(kind: str) -> None:
    told = faults(input=[{"role": "user", "content": [{"type": kind}]}])
    assert told == {f"{PART}.type": f"{kind!r}: " + told[f"{PART}.type"].partition(": ")[2]}
    assert "reads text alone" in told[f"{PART}.type"]


# ------------------------------------------------------------ what the answer repeats


def test_the_answer_repeats_what_was_asked_for() -> None:
    told = repeated(
        instructions="Be nice.",
        temperature=1,
        max_output_tokens=7.0,
        metadata={"a": "b"},
        tools=[TOOL],
        tool_choice="required",
        text={"format": {"type": "json_object"}},
        reasoning={"effort": "low", "summary": "auto"},
        store=True,
        service_tier="flex",
        user=None,
    )
    assert (told["instructions"], told["temperature"], told["max_output_tokens"]) == (
        *("Be nice.", 1, 7),
    )
    assert isinstance(told["max_output_tokens"], int)
    assert (told["metadata"], told["tool_choice"], told["user"]) == ({"a": "b"}, "required", None)
    assert told["tools"] == [{**TOOL, "strict": False}]
    assert told["text"] == {"format": {"type": "json_object"}, "verbosity": "medium"}
    assert told["reasoning"] == {"effort": "low", "summary": None}  # no summary was made
    assert (told["store"], told["service_tier"], told["truncation"]) == (
        *(False, "default", "disabled"),
    )


def test_the_page_names_what_is_passed_over_here() -> None:
    page = (Path(__file__).parents[3] / "docs" / "openai.md").read_text(encoding="utf-8")
    told = page.partition("## Responses")[2].partition("\n## ")[0]
    for name in (
        *responses.PASSED_OVER,
        *response_input.ITEMS_PASSED_OVER,
        *response_input.PARTS_PASSED_OVER,
    ):
        assert f"`{name}`" in told
