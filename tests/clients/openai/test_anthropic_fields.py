"""The bodies of /v1/messages: a field arrives as a chat's does, or is refused by its own name."""

from pathlib import Path
from typing import Any

import pytest

from quire.clients.openai import anthropic_body, anthropic_input, anthropic_tools, chat, sampling
from quire.clients.openai.faults import BadBody
from quire.v1 import inference_pb2 as pb

HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "number", "default": 25.0}}}
TOOL = {"name": "add", "description": "Adds.", "input_schema": SCHEMA}
FUNCTION = {"name": "add", "description": "Adds.", "parameters": SCHEMA}
CHAT_TOOL = {"type": "function", "function": FUNCTION}
KEPT = {"type": "clear_thinking_20251015", "keep": "all"}


def request(**fields: Any) -> pb.GenerateRequest:
    body = {"max_tokens": 5, "messages": HELLO, **fields}
    [read] = anthropic_body.read(body).requests
    return read


def of_chat(**fields: Any) -> pb.GenerateRequest:
    [read] = chat.read({"max_tokens": 5, "messages": HELLO, **fields}).requests
    return read


def faults(**fields: Any) -> dict[str, str]:
    with pytest.raises(BadBody) as caught:
        request(**fields)
    return dict(caught.value.faults)


SAME: dict[str, Any] = {  # here as in a chat
    **dict.fromkeys(("temperature", "top_p", "min_p", "presence_penalty"), 0.5),
    "max_tokens": 7,
    "seed": -1,
    "top_k": 5,
    "priority": 5,
    "cache_salt": "s",
    "model": "m",
    "parse_output": True,
    "chat_template_kwargs": {"a": 1},
    "structured_outputs": {"regex": "a"},
}
OTHERWISE: list[tuple[dict[str, Any], dict[str, Any]]] = [  # a message's, a chat's
    ({"stop_sequences": ["x", "y"]}, {"stop": ["x", "y"]}),
    ({"metadata": {"user_id": "u"}}, {"user": "u"}),
    ({"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
    ({"thinking": {"type": "enabled"}}, {"chat_template_kwargs": {"enable_thinking": True}}),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 4, "display": "summarized"}},
        {"chat_template_kwargs": {"enable_thinking": True}},
    ),
    ({"thinking": {"type": "adaptive"}}, {}),
    ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
    ({"output_config": {"effort": "high"}}, {}),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    ),
    (
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    ),
    ({"tools": [TOOL]}, {"tools": [CHAT_TOOL]}),
    (
        {
            "tools": [
                {
                    **TOOL,
                    "type": "custom",
                    "strict": True,
                    "cache_control": {},
                    "input_examples": [],
                    "eager_input_streaming": True,
                    "allowed_callers": ["direct"],
                    "defer_loading": False,
                }
            ],
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        },
        {
            "tools": [{"type": "function", "function": {**FUNCTION, "strict": True}}],
            "parallel_tool_calls": False,
        },
    ),
    *(
        ({"tools": [TOOL], "tool_choice": theirs}, {"tools": [CHAT_TOOL], "tool_choice": chats})
        for theirs, chats in (
            ({"type": "any"}, "required"),
            ({"type": "none"}, "none"),
            ({"type": "auto", "disable_parallel_tool_use": False}, "auto"),
            ({"type": "tool", "name": "add"}, {"type": "function", "function": {"name": "add"}}),
        )
    ),
    (
        {
            "tool_choice": {"type": "none", "disable_parallel_tool_use": True},
            "context_management": {"edits": [KEPT]},
            "cache_control": {"type": "ephemeral"},
            "service_tier": "auto",
            "speed": "standard",
            "thinking": None,
            "n": 1,
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


def of_role(role: str, *blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("fields", "name", "words"),
    [
        ({"max_tokens": None}, "max_tokens", "is missing"),
        ({"max_tokens": -1}, "max_tokens", "must not be negative"),
        ({"messages": None}, "messages", "is missing"),
        ({"messages": []}, "messages", "is empty"),
        ({"messages": "x"}, "messages", "must be a list"),
        ({"messages": ["x"]}, "messages[0]", "must be an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "one of assistant"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "list of blocks"),
        (
            {"messages": [{"role": "user", "content": "x", "name": "y"}]},
            "messages[0].name",
            "not a field",
        ),
        (of_role("user", {"type": "text"}), "messages[0].content[0].text", "is missing"),
        (
            of_role("user", {"type": "text", "text": "x"}, {"type": "tool_result"}),
            "messages[0].content[1].type",
            "before the message's text",
        ),
        (
            of_role("user", {"type": "tool_result", "content": "x"}),
            "messages[0].content[0].tool_use_id",
            "is missing",
        ),
        (
            of_role("user", {"type": "tool_result", "content": [{"type": "image"}]}),
            "messages[0].content[0].content[0].type",
            "reads text alone",
        ),
        (
            of_role("assistant", {"type": "redacted_thinking", "data": "x"}),
            "messages[0].content[0].type",
            "leave it out",
        ),
        (
            of_role("assistant", {"type": "tool_use", "id": "c", "name": "f"}),
            "messages[0].content[0].input",
            "is missing",
        ),
        (
            of_role("assistant", {"type": "tool_use", "id": "c", "input": {}}),
            "messages[0].content[0].name",
            "is missing",
        ),
        (
            of_role("assistant", {"type": "tool_use", "id": "", "name": "f", "input": {}}),
            "messages[0].content[0].id",
            "is empty",
        ),
        (
            of_role("user", {"type": "tool_result", "tool_use_id": "", "content": "x"}),
            "messages[0].content[0].tool_use_id",
            "is empty",
        ),
        ({"system": [{"type": "image"}]}, "system[0].type", "reads text alone"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "tools[0].type",
            "no tool runs on this server",
        ),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema", "is missing"),
        ({"tools": [{**TOOL, "input_examples": [{}]}]}, "tools[0].input_examples", "description"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading", "must be false"),
        ({"tools": [{**TOOL, "allowed_callers": ["x"]}]}, "tools[0].allowed_callers", "direct"),
        ({"tool_choice": {"type": "any"}}, "tool_choice.type", "there are no tools"),
        ({"tool_choice": {"type": "required"}}, "tool_choice.type", "must be one of any"),
        ({"tool_choice": {"type": "auto", "name": "f"}}, "tool_choice.name", "not a field"),
        ({"thinking": {"type": "on"}}, "thinking.type", "must be one of adaptive"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 3}},
            "thinking.budget_tokens",
            "leave it out, or give at least max_tokens - 1",
        ),
        (
            {"thinking": {"type": "adaptive", "display": "omitted"}},
            "thinking.display",
            "summarized",
        ),
        (
            {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"enable_thinking": True}},
            "thinking",
            "excludes chat_template_kwargs.enable_thinking",
        ),
        ({"output_config": {"task_budget": {}}}, "output_config.task_budget", "not a field"),
        ({"output_config": {"format": {}}}, "output_config.format.type", "must be one of"),
        (
            {
                "output_format": {"type": "json_object"},
                "output_config": {"format": {"type": "json_object"}},
            },
            "output_format",
            "excludes output_config.format",
        ),
        (
            {"context_management": {"edits": [{**KEPT, "keep": {}}]}},
            "context_management.edits",
            "send fewer messages",
        ),
        ({"metadata": {"a": "b"}}, "metadata.a", "not a field"),
        ({"metadata": {"user_id": "a"}, "user": "b"}, "user", "excludes metadata.user_id"),
        *(
            ({name: {"a": 1}}, name, "is of /v1/chat/completions alone")
            for name in (*sampling.PASSED_OVER, *sampling.USERS)
            if name not in ("metadata", "service_tier", "user")
        ),
        ({"mcp_servers": [{}]}, "mcp_servers", "no tool runs on this server"),
        ({"thread": {"type": "create"}}, "thread", "the whole conversation"),
        ({"speed": "fast"}, "speed", "must be standard"),
        ({"stop": "x"}, "stop", "use stop_sequences"),
        ({"n": 2}, "n", "/v1/chat/completions"),
        ({"stream_options": {}}, "stream_options", "unasked"),
        ({"wit": 1}, "wit", "not a field"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(
    fields: dict[str, Any], name: str, words: str
) -> None:
    told = faults(**fields)
    assert name in told and words in told[name]


@pytest.mark.parametrize("kind", ["image", "document", "search_result", "tool_use", "thinking"])
def test_a_block_that_a_user_cannot_say_is_refused(kind: str) -> None:
    assert set(faults(**of_role("user", {"type": kind}))) == {"messages[0].content[0].type"}


def test_a_count_reads_what_the_prompt_is_made_of_and_nothing_else() -> None:
    asked = {"messages": HELLO, "system": "s", "tools": [TOOL], "thinking": {"type": "disabled"}}
    asked |= {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    told, names = anthropic_body.read_count({"model": "m", **asked})
    assert told.chat == request(**asked).chat
    assert names.body("chat.messages[1].content") == "messages[0].content"
    anthropic_body.read_count({**asked, "thinking": {"type": "enabled", "budget_tokens": 1024}})
    anthropic_body.read_count({**asked, "speed": "standard"})
    for field, value in (("temperature", 1), ("speed", "fast")):
        with pytest.raises(BadBody, match=field):
            anthropic_body.read_count({**asked, field: value})


def test_the_page_names_what_is_passed_over() -> None:
    page = (Path(__file__).parents[3] / "docs" / "anthropic.md").read_text(encoding="utf-8")
    for name in (
        *anthropic_body.PASSED_OVER,
        *anthropic_tools.PASSED_OVER,
        *anthropic_input.TEXTS_PASSED_OVER,
    ):
        assert f"`{name}`" in page
