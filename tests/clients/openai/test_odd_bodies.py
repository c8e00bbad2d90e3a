"""Whatever stands anywhere in a body: it is read, or refused as a bad body, and nothing else."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from quire.clients.openai import anthropic_body, chat, completions, responses, tokens, vectors
from quire.clients.openai.faults import BadBody

USER = {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}}
SAMPLING = {
    **dict.fromkeys(("n", "max_tokens", "min_tokens", "top_k", "seed", "prompt_logprobs"), 1),
    **dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty"), 0.5),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), 0.5),
    **{key: [5] for key in ("stop_token_ids", "allowed_token_ids", "banned_token_ids")},
    **dict.fromkeys(("user", "safety_identifier", "cache_salt", "model"), "a"),
    **dict.fromkeys(("ignore_eos", "include_stop_str_in_output", "stream"), False),
    "stop": ["a"],
    "logit_bias": {"5": 1},
    "priority": 0,
    "metadata": {},
}
CHAT = {
    **SAMPLING,
    "messages": [
        USER,
        {"role": "assistant", "tool_calls": [CALL], "reasoning": "a", "refusal": None},
        {"role": "tool", "content": "a", "name": "f", "tool_call_id": "c"},
    ],
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "logprobs": True,
    "top_logprobs": 1,
    "modalities": ["text"],
    "chat_template_kwargs": {"a": 1},
    "add_generation_prompt": True,
    "parse_output": True,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
STREAMED = {"stream": True, "stream_options": {"include_usage": True}, "response_format": FORMAT}
TEXT_FORMAT = {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}
RESPONSES = {
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}], "content": None},
        {"type": "message", "role": "assistant", "content": "a", "id": "m", "status": "completed"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "a"},
    ],
    "instructions": "a",
    "tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": False}],
    "tool_choice": {"type": "function", "name": "f"},
    "text": {"format": TEXT_FORMAT, "verbosity": "medium"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 1,
    "max_output_tokens": 1,
    "metadata": {"a": "b"},
    "chat_template_kwargs": {"a": 1},
    "stream": True,
    "stream_options": {"include_obfuscation": False},
    "background": False,
    "truncation": "disabled",
}
MESSAGES = {
    "system": [{"type": "text", "text": "a", "cache_control": {}}],
    "messages": [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "a", "signature": ""},
                {"type": "text", "text": "a"},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c", "content": "a", "is_error": True},
                {"type": "text", "text": "a"},
            ],
        },
        {"role": "assistant", "content": "a"},
    ],
    "tools": [{"name": "f", "input_schema": SCHEMA, "strict": True}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 4},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
}
MESSAGES_BODY = {
    **MESSAGES,
    "max_tokens": 5,
    "stop_sequences": ["a"],
    "metadata": {"user_id": "a"},
    "context_management": {"edits": []},
    "stream": True,
}
BODIES: dict[str, tuple[Callable[[dict[str, Any]], object], dict[str, Any]]] = {
    "chat": (chat.read, CHAT),
    "streamed chat": (chat.read, {"messages": [USER], **STREAMED}),
    "response": (responses.read, RESPONSES),
    "message": (anthropic_body.read, MESSAGES_BODY),
    "count": (anthropic_body.read_count, MESSAGES),
    "choice": (chat.read, {"messages": [USER], "structured_outputs": {"choice": ["a"]}}),
    "schema": (chat.read, {"messages": [USER], "structured_outputs": {"json": SCHEMA}}),
    "completions": (
        completions.read,
        {**SAMPLING, "prompt": ["a", [5]], "logprobs": 1, "echo": True, "suffix": "", "best_of": 1},
    ),
    "embeddings": (
        vectors.read_embeddings,
        {"input": ["a", [5]], "encoding_format": "float", "dimensions": 1, "truncate": True},
    ),
    "rerank": (vectors.read_rerank, {"query": "a", "documents": ["a", {"text": "a"}], "top_n": 1}),
    "tokenize": (tokens.read_tokenize, {"messages": [USER], "tools": [TOOL]}),
    "tokenize text": (tokens.read_tokenize, {"prompt": "a", "add_special_tokens": True}),
    "detokenize": (tokens.read_detokenize, {"tokens": [5]}),
}
ODD: list[Any] = [
    *(None, True, 0, -1, 1.5, -0.0, 1e300, 1 << 31, 1 << 32, 1 << 64, -(1 << 63) - 1, 10**300),
    *("", "a", "-1", "5", "\0", "e\u0301\u200b", "<|im_end|>"),
    *([], [None], [[]], [{}], [True], [-1], [1 << 64], ["a", 1]),
    *({}, {"": None}, {"-1": 1}, {"5": 1e300}, {"5": 10**300}, {"a": {}}, {"type": []}),
]


def with_odd(value: Any) -> Iterator[Any]:
    """The value with something odd in each of its places, one at a time, and with each left out."""
    yield from ODD
    if isinstance(value, dict | list):
        for place in value if isinstance(value, dict) else range(len(value)):
            less = copy.copy(value)
            del less[place]
            yield less
            for odd in with_odd(value[place]):
                changed = copy.copy(value)
                changed[place] = odd
                yield changed


@pytest.mark.parametrize("name", BODIES)
def test_any_body_is_read_or_refused_by_its_fields(name: str) -> None:
    read, body = BODIES[name]
    read(body)
    for odd in with_odd(body):
        if isinstance(odd, dict):
            try:
                read(odd)
            except BadBody as bad:
                assert all(fault.field for fault in bad.faults)
