"""OpenAI's bodies as requests of the contract: a field arrives, or is refused by name."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from quire.clients.openai import chat, completions, sampling, text_parts
from quire.clients.openai.faults import MAX_FAULTS, BadBody, Faults
from quire.clients.openai.field_names import Names
from quire.clients.openai.parsed_body import ParsedBody
from quire.v1 import inference_pb2 as pb

HELLO = [{"role": "user", "content": "Hello"}]
FIRST = "messages[0].content[0]"  # the first part
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"z": 25.0, "a": 1}},
}


def asked(**fields: Any) -> ParsedBody:
    return chat.read({"messages": HELLO, **fields})


def request(**fields: Any) -> pb.GenerateRequest:
    [read] = asked(**fields).requests
    return read


def faults(**fields: Any) -> dict[str, str]:
    with pytest.raises(BadBody) as caught:
        asked(**fields)
    return dict(caught.value.faults)


def test_every_field_of_sampling_arrives() -> None:
    got = request(
        model="m",
        temperature=1,
        top_p=0.5,
        top_k=-1,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=-1,
        n=2,
        max_completion_tokens=7,
        min_tokens=3,
        stop="x",
        stop_token_ids=[4],
        include_stop_str_in_output=True,
        ignore_eos=True,
        logprobs=True,
        top_logprobs=5,
        logit_bias={"17": -100, "18": 2.5},
        allowed_token_ids=[1, 2],
        banned_token_ids=[3],
        cache_salt="salt",
        priority=5,
    )
    assert got.sampling == pb.SamplingParams(
        temperature=1,
        top_p=0.5,
        top_k=0,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=(1 << 64) - 1,
        n=2,
        max_tokens=7,
        min_tokens=3,
        stop=["x"],
        stop_token_ids=[4],
        include_stop_str_in_output=True,
        ignore_eos=True,
        logprobs=5,
        logit_bias={17: -100, 18: 2.5},
        allowed_token_ids=[1, 2],
        banned_token_ids=[3],
    )
    assert (got.model, got.cache_salt) == ("m", "salt")
    assert got.priority == -5  # here the lower runs first, in the contract the higher


def test_null_is_as_good_as_absent() -> None:
    nothing = dict.fromkeys(
        (
            *("temperature", "max_tokens", "n", "stop", "seed", "logit_bias", "tools", "user"),
            *("tool_choice", "response_format", "stream", "stream_options", "functions"),
        )
    )
    assert request(**nothing) == request()


def test_null_is_absent_whatever_its_name_and_wherever_it_stands() -> None:
    nothing = dict.fromkeys(("audio", "modalities", "verbosity", "web_search_options", "x"))
    said = {"role": "assistant", "content": [{"type": "text", "text": "a", **nothing}], **nothing}
    bare = {"role": "assistant", "content": "a"}
    tool = {**TOOL, "function": {**TOOL["function"], **nothing}, **nothing}
    got = request(messages=[said], tools=[tool], response_format={"type": "text", **nothing})
    assert got == request(messages=[bare], tools=[TOOL])
    completions.read({"prompt": "a", "max_completion_tokens": None, **nothing})


def test_what_is_passed_over_changes_nothing() -> None:
    part = {"type": "text", "text": "Hello", "cache_control": {}, "prompt_cache_breakpoint": {}}
    told = request(
        messages=[{"role": "user", "content": [part]}],
        prompt_cache_options={"ttl": "30m"},
        prompt_cache_retention="24h",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        prediction={"type": "content", "content": "x"},
        tool_choice="auto",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        modalities=["text"],
        skip_special_tokens=True,
    )
    assert told == request()
    assert request(tools=[], tool_choice="none", parallel_tool_calls=False) == request()


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"user": "u"}, "user"),
        ({"prompt_cache_key": "u", "user": None}, "prompt_cache_key"),
        ({"prompt_cache_key": "k", "user": "v", "safety_identifier": "u"}, "safety_identifier"),
    ],
)
def test_users_of_a_client_have_one_name_and_no_salt(fields: dict[str, Any], name: str) -> None:
    assert request(**fields) == pb.GenerateRequest(user="u", chat=request().chat, sampling={})
    assert asked(**fields).names().body("user") == name


@pytest.mark.parametrize("value", [3e9, -3e9, 3.4e38])
def test_a_bias_that_the_contract_holds_is_judged_there(value: float) -> None:
    assert request(logit_bias={"17": value}).sampling.logit_bias[17] == pytest.approx(value)


@pytest.mark.parametrize("value", [1e39, -1e39, 1e308, 10**39, -(10**400)])
def test_what_the_contract_cannot_hold_is_told_as_it_was_given(value: float) -> None:
    told = faults(logit_bias={"17": value}, temperature=value)
    assert told.keys() == {"logit_bias[17]", "temperature"}
    for words in told.values():
        assert words.startswith(str(value)[:40]) and "the range of a float" in words


@pytest.mark.parametrize("value", [1e-300, -1e-300, 2.0**-150, -5e-324])
def test_what_is_next_to_zero_is_not_told_as_zero(value: float) -> None:
    read = request(logit_bias={"17": value}, temperature=value).sampling
    for told in (read.logit_bias[17], read.temperature):
        assert told and (told < 0) == (value < 0)
    assert request(temperature=-0.0).sampling.temperature == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{}] * 10_000},
        {"messages": [{"role": "user", "content": [{}] * 10_000}]},
        {"tools": [{}] * 10_000},
        {"logit_bias": dict.fromkeys(map(str, range(10_000)), "x")},
    ],
)
def test_of_very_many_faults_no_more_are_looked_for_than_are_told(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_for: list[str] = []
    add = Faults.add

    def noted(self: Faults, field: str, value: object, words: str) -> None:
        looked_for.append(field)
        add(self, field, value, words)

    monkeypatch.setattr(Faults, "add", noted)
    assert list(faults(**fields)) == looked_for
    assert len(looked_for) == MAX_FAULTS


def test_what_is_not_known_is_refused_and_all_of_it_is_told() -> None:
    assert faults(wit=1, temprature=0.5, max_tokens="7", n=1.5) == {
        "wit": "1: is not a field of this request",
        "temprature": "0.5: is not a field of this request",
        "max_tokens": "'7': must be a whole number",
        "n": "1.5: must be a whole number",
    }
    assert "use tools" in faults(functions=[])["functions"]
    assert "stream = false" in faults(prompt_logprobs=1, stream=True)["prompt_logprobs"]
    assert "negative" in faults(prompt_logprobs=-1)["prompt_logprobs"]
    told = faults(audio={"voice": "x"}, verbosity="low", web_search_options={}, echo=True)
    assert {name: "of this request" in words for name, words in told.items()} == dict.fromkeys(
        ("audio", "verbosity", "web_search_options", "echo"), False
    )
    assert faults(skip_special_tokens=False) == {"skip_special_tokens": "false: must be true"}


def test_of_very_many_faults_the_first_are_told() -> None:
    assert len(faults(**{f"x{i}": i for i in range(10_000)})) == 16


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"stop": [1]}, "stop[0]"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": "2"}}, "logit_bias[1]"),
        ({"logit_bias": {"1": 5, "01": -5}}, "logit_bias"),
        ({"logit_bias": {"\u0661": 5}}, "logit_bias"),
        ({"logit_bias": {"-1": 5}}, "logit_bias"),
        ({"logit_bias": {str(1 << 32): 5}}, "logit_bias"),
        ({"stop_token_ids": [True]}, "stop_token_ids[0]"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
        ),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": 1, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, f"{FIRST}.text"),
        (
            {"messages": [{"role": "assistant", "content": None, "function_call": {}}]},
            "messages[0].function_call",
        ),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"nome": "x"}}]}, "tools[0].function.nome"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"structured_outputs": {"regex": "x", "json": {}}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "x", "fast": 1}}, "structured_outputs.fast"),
    ],
)
def test_a_fault_names_its_field(fields: dict[str, Any], name: str) -> None:
    assert list(faults(**fields)) == [name]


def test_a_role_that_there_is_not_is_told_all_that_this_api_takes() -> None:
    told = faults(messages=[{"role": "critic", "content": "x"}])["messages[0].role"]
    for role in ("system", "developer", "user", "assistant", "tool"):
        assert role in told


def test_conversations_arrive_with_their_roles_parts_calls_and_thoughts() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    got = request(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {
                "role": "assistant",
                "content": None,
                "reasoning": "hm",
                "reasoning_content": "hm",
                "tool_calls": [call],
                "refusal": None,
                "annotations": [],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
        ],
        tools=[TOOL],
        chat_template_kwargs={"enable_thinking": False},
        continue_final_message=True,
    ).chat
    system, user, assistant, tool = got.messages
    assert (system.role, user.content) == ("system", "ab")
    assert assistant.tool_calls[0] == pb.ToolCall(id="c1", name="add", arguments_json="{}")
    assert (assistant.reasoning_content, tool.tool_call_id) == ("hm", "c1")
    assert got.tools[0].parameters_json == '{"z": 25.0, "a": 1}'  # order and points are kept
    assert json.loads(got.chat_template_kwargs) == {"enable_thinking": False}
    assert got.continue_final_message and not got.add_generation_prompt


def test_what_an_answer_must_be_like_arrives_as_a_constraint() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    read = asked(response_format=form)
    assert json.loads(read.requests[0].constraint.json_schema) == schema
    told = "response_format.json_schema.schema.properties.x"
    assert read.names().body("constraint.json_schema.properties.x") == told
    assert request(response_format={"type": "json_object"}).constraint.json_object
    for kind, value in (("regex", "a+"), ("grammar", "start: x"), ("json_schema", "{}")):
        name = kind.removesuffix("_schema")
        got = request(structured_outputs={name: value}).constraint
        assert (got.WhichOneof("kind"), getattr(got, kind)) == (kind, value)
    no_object = request(structured_outputs={"json_object": False}).constraint
    assert no_object.WhichOneof("kind") == "json_object"  # and refused as over gRPC
    choice = asked(structured_outputs={"choice": ["a", "b"]})
    assert list(choice.requests[0].constraint.choice.options) == ["a", "b"]
    assert choice.names().body("constraint.choice.options[1]") == "structured_outputs.choice[1]"


def test_whether_tools_may_be_called_arrives() -> None:
    named = {"type": "function", "function": {"name": "add"}}
    assert request(tools=[TOOL], tool_choice=named).chat.tool_choice.name == "add"
    none = request(tools=[TOOL], tool_choice="none", parallel_tool_calls=False).chat
    assert none.tool_choice.mode == pb.TOOL_CHOICE_MODE_NONE
    assert none.HasField("parallel_tool_calls") and not none.parallel_tool_calls
    must = request(tools=[TOOL], tool_choice="required").chat
    assert must.tool_choice.mode == pb.TOOL_CHOICE_MODE_REQUIRED
    strict = {"type": "function", "function": {"name": "add", "strict": True}}
    assert request(tools=[strict]).chat.tools[0].strict


def test_faults_of_the_contract_have_the_names_of_the_http_api() -> None:
    names = Names({"sampling.max_tokens": "max_completion_tokens"})
    assert {
        contract: names.body(contract)
        for contract in (
            *("sampling.max_tokens", "sampling.top_p", "sampling.stop[1] (bytes)", "chat"),
            *("chat.messages[2].tool_calls[0].arguments_json", "chat.tools[1].parameters_json"),
            *("chat.messages[0].role", "chat.chat_template_kwargs", "token_ids.ids[3]", "text"),
            *("text_field", "chat.tools[0].name", "request_id", "chat.tool_choice.name"),
        )
    } == {
        "sampling.max_tokens": "max_completion_tokens",
        "sampling.top_p": "top_p",
        "sampling.stop[1] (bytes)": "stop[1] (bytes)",
        "chat": "messages",
        "chat.messages[2].tool_calls[0].arguments_json": (
            "messages[2].tool_calls[0].function.arguments"
        ),
        "chat.tools[1].parameters_json": "tools[1].function.parameters",
        "chat.messages[0].role": "messages[0].role",
        "chat.chat_template_kwargs": "chat_template_kwargs",
        "token_ids.ids[3]": "prompt[3]",
        "text": "prompt",
        "text_field": "text_field",
        "chat.tools[0].name": "tools[0].function.name",
        "request_id": "x-request-id",
        "chat.tool_choice.name": "tool_choice.function.name",
    }


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": ["a", 2]}, "prompt[1]"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": [1, -1]}, "prompt[1]"),
        ({"prompt": "a", "echo": True, "stream": True}, "echo"),
        ({"prompt": "a", "echo": True, "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_completion_tokens": 1}, "max_completion_tokens"),
        ({"prompt": "a", "prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"prompt": "a", "echo": True, "logprobs": 2, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"prompt": "a", "echo": True, "logprobs": 0, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "n": 2, "best_of": 3}, "best_of"),
        ({"prompt": "a", "messages": []}, "messages"),
    ],
)
def test_faults_of_completions(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(BadBody) as caught:
        completions.read(fields)
    assert [field for field, _ in caught.value.faults] == [name]


def test_the_page_names_what_is_passed_over() -> None:
    page = (Path(__file__).parents[3] / "docs" / "openai.md").read_text(encoding="utf-8")
    table = page.partition("| passed over |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z_.]+)`", table)) == {
        *sampling.PASSED_OVER,
        *text_parts.PASSED_OVER,
        "stream_options.include_obfuscation",
    }
