"""Fields that other clients than OpenAI's own send: what they become, and what to send instead."""

import json
from typing import Any

import pytest

from quire.clients.openai import chat, completions
from quire.clients.openai.faults import BadBody
from quire.clients.openai.parsed_body import ParsedBody

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "add"}}


def asked(**fields: Any) -> ParsedBody:
    return chat.read({"messages": [{"role": "user", "content": "Hello"}], **fields})


def faults(**fields: Any) -> dict[str, str]:
    with pytest.raises(BadBody) as caught:
        asked(**fields)
    return dict(caught.value.faults)


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        *((f"guided_{kind}", kind) for kind in ("json", "regex", "choice", "grammar")),
        *(("json_schema", "json"), ("regex", "regex"), ("ebnf", "grammar")),  # SGLang's
    ],
)
def test_other_names_of_constraints_are_told_apart_from_typing_errors(
    field: str, kind: str
) -> None:
    with pytest.raises(BadBody) as caught:
        completions.read({"prompt": "a", field: "x"})
    for told in (faults(**{field: "x"}), dict(caught.value.faults)):
        assert f'structured_outputs = {{"{kind}": …}}' in told[field]


@pytest.mark.parametrize("name", ["schema", "value"])
def test_a_schema_beside_json_object_is_honoured(name: str) -> None:
    schema = {"type": "object"}
    read = asked(response_format={"type": "json_object", name: schema})
    assert json.loads(read.requests[0].constraint.json_schema) == schema
    told = read.names().body("constraint.json_schema.type")
    assert told == f"response_format.{name}.type"
    for anything in ({}, True, "{}"):
        [request] = asked(response_format={"type": "json_object", name: anything}).requests
        assert request.constraint.json_object, "of which any value is valid"
    for other in ({"type": "text"}, {"type": "json_object", "schema": {}, "value": {}}):
        assert list(faults(response_format={name: schema, **other}))


def test_an_effort_is_what_a_template_can_make_of_it() -> None:
    both = faults(reasoning_effort="medium", chat_template_kwargs={"reasoning_effort": "high"})
    assert "excludes chat_template_kwargs.reasoning_effort" in both["reasoning_effort"]
    for effort, key, value in (
        ("none", "enable_thinking", False),
        *((effort, "reasoning_effort", effort) for effort in ("minimal", "low", "medium", "high")),
    ):
        read = asked(reasoning_effort=effort, chat_template_kwargs={"a": 1})
        told = json.loads(read.requests[0].chat.chat_template_kwargs)
        assert told == {"a": 1, key: value}
        contract = f"chat.chat_template_kwargs.{key}"
        [fault] = read.names().faults([(contract, "is not mentioned")])
        assert fault.field == "reasoning_effort" and "medium is as if unset" in fault.words
        both = faults(reasoning_effort=effort, chat_template_kwargs={key: True})
        assert f"excludes chat_template_kwargs.{key}" in both["reasoning_effort"]


def test_a_verbosity_is_taken_if_it_is_the_usual_one() -> None:
    assert asked(verbosity="medium") == asked()
    assert "in a message" in faults(verbosity="low")["verbosity"]


def test_other_kinds_of_tools_are_told_what_is_here_instead() -> None:
    custom = {"type": "custom", "custom": {"name": "x"}}
    assert "its input a parameter" in faults(tools=[custom])["tools[0].type"]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOL]}}
    assert "those tools alone" in faults(tools=[TOOL], tool_choice=allowed)["tool_choice.type"]
