"""Items of a Responses body: they become a chat's messages, and a message's faults are theirs."""

import random
from typing import Any

import pytest

from quire.clients.openai import chat, responses
from quire.clients.openai.errors import error_of
from quire.clients.openai.response_names import Place, ResponseNames
from quire.clients.openai.responses import ResponsesBody
from quire.v1 import inference_pb2 as pb


def asked(**fields: Any) -> ResponsesBody:
    return responses.read({"input": "Hello", **fields})


def request(**fields: Any) -> pb.GenerateRequest:
    [read] = asked(**fields).requests
    return read


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def call(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A call as an item, and in a chat."""
    function = {"name": "f", "arguments": f'{{"a": {number}}}'}
    item = {"type": "function_call", "call_id": f"c{number}", **function}
    return item, {"id": f"c{number}", "type": "function", "function": function}


def invented(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The same conversation as items, and as a chat's messages."""
    draw = random.Random(seed)
    items: list[dict[str, Any]] = []
    messages: list[dict[str, Any]] = []
    for turn in range(draw.randrange(1, 6)):
        role = draw.choice(("user", "user", "system", "developer"))
        said, parts = f"Hello {turn}", draw.random() < 0.5
        item = {"role": role, "content": [{"type": "input_text", "text": said}] if parts else said}
        items.append({"type": "message", **item} if draw.random() < 0.5 else item)
        messages.append({"role": role, "content": said})
        for step in range(draw.randrange(3)):
            calls = draw.randrange(3)
            _answer(draw, items, messages, 10 * turn + step, calls)
            if not calls:  # the turn has ended
                break
    return items, messages


def _answer(
    draw: random.Random, items: list[Any], messages: list[Any], number: int, calls: int
) -> None:
    message: dict[str, Any] = {"role": "assistant", "content": None}
    if draw.random() < 0.5:
        message["reasoning"] = f"Hm {number}"
        part = {"type": "reasoning_text", "text": message["reasoning"]}
        items.append({"type": "reasoning", "id": "rs", "summary": [], "content": [part]})
    if not calls or draw.random() < 0.5:
        message["content"] = f"So {number}"
        part = {"type": "output_text", "text": message["content"], "annotations": []}
        item = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
        items.append({**item, "content": [part]})
    made = [call(100 * number + i) for i in range(calls)]
    if made:
        message["tool_calls"] = [in_chat for _, in_chat in made]
    messages.append(message)
    items.extend(item for item, _ in made)
    for item, _ in made:
        said = f"It is {item['call_id']}"
        output = [{"type": "input_text", "text": said}] if draw.random() < 0.5 else said
        called = {"call_id": item["call_id"]}
        items.append({"type": "function_call_output", **called, "output": output})
        messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": said})


@pytest.mark.parametrize("block", range(10))
def test_a_conversation_of_items_is_the_same_chat(block: int) -> None:
    for seed in range(30 * block, 30 * block + 30):
        items, messages = invented(seed)
        expected = chat.read({"messages": messages}).requests[0].chat
        expected.omit_unshown_reasoning = any(turn.reasoning_content for turn in expected.messages)
        assert request(input=items).chat == expected


def test_instructions_come_first_and_a_text_is_the_users() -> None:
    told = [(m.role, m.content) for m in request(instructions="Be nice.").chat.messages]
    assert told == [("system", "Be nice."), ("user", "Hello")]
    assert request(instructions="") == request()


def test_what_a_turn_made_is_one_message_until_its_calls_are_answered() -> None:
    said = {"role": "assistant", "content": "a"}
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}]}
    called = [call(number)[0] for number in range(2)]
    got = request(input=[user("x"), thought, said, called[0], thought, called[1], said])
    _, turn = got.chat.messages
    assert (turn.content, turn.reasoning_content, len(turn.tool_calls)) == ("aa", "tt", 2)
    got = request(input=[said, said, thought, said, thought])
    assert [(m.content, m.reasoning_content) for m in got.chat.messages] == [
        *(("a", ""), ("a", ""), ("a", "t"), ("", "t")),
    ]


def test_thoughts_without_their_text_say_nothing() -> None:
    nothing = {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": None}
    assert request(input=[user("x"), nothing]) == request(input=[user("x")])
    content = [{"type": "reasoning_text", "text": "whole"}]
    both = {
        "type": "reasoning",
        "content": content,
        "summary": [{"type": "summary_text", "text": "s"}],
    }
    assert request(input=[both]).chat.messages[0].reasoning_content == "whole"


def test_faults_of_the_contract_have_the_names_of_items() -> None:
    items = [
        user("x"),
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}]},
        {"role": "assistant", "content": "a"},
        call(0)[0],
        call(1)[0],
        {"type": "function_call_output", "call_id": "c1", "output": "o"},
    ]
    names = asked(instructions="i", input=items, max_output_tokens=1).names()
    assert {
        contract: names.body(contract)
        for contract in (
            *("chat", "chat.messages[0].content", "chat.messages[1].content", "chat.messages[1]"),
            *("chat.messages[2].content", "chat.messages[2].reasoning_content", "chat.messages[2]"),
            *("chat.messages[2].tool_calls", "chat.messages[2].tool_calls[1].arguments_json"),
            *("chat.messages[2].tool_calls[1].id", "chat.messages[3].content"),
            *(
                "chat.messages[3].tool_call_id",
                "chat.tools[1].parameters_json",
                "chat.tools[0].name",
            ),
            *("sampling.max_tokens", "sampling.top_p", "chat.tool_choice.name", "request_id"),
            *("sampling.logprobs", "logprobs"),
        )
    } == {
        "chat": "input",
        "chat.messages[0].content": "instructions",
        "chat.messages[1].content": "input[0].content",
        "chat.messages[1]": "input[0]",
        "chat.messages[2].content": "input[2].content",
        "chat.messages[2].reasoning_content": "input[1]",
        "chat.messages[2]": "input[1]",
        "chat.messages[2].tool_calls": "input[3]",
        "chat.messages[2].tool_calls[1].arguments_json": "input[4].arguments",
        "chat.messages[2].tool_calls[1].id": "input[4].call_id",
        "chat.messages[3].content": "input[5].output",
        "chat.messages[3].tool_call_id": "input[5].call_id",
        "chat.tools[1].parameters_json": "tools[1].parameters",
        "chat.tools[0].name": "tools[0].name",
        "sampling.max_tokens": "max_output_tokens",
        "sampling.top_p": "top_p",
        "chat.tool_choice.name": "tool_choice.name",
        "request_id": "x-request-id",
        "sampling.logprobs": "top_logprobs",
        "logprobs": "include",
    }
    assert asked().names().body("chat.messages[0].content") == "input"
    assert asked().names().body("chat.messages") == "input"  # of thoughts that say nothing alone
    schema = {"type": "json_schema", "schema": {"type": "object"}}
    assert asked(text={"format": schema}).names().body("constraint.json_schema") == (
        "text.format.schema"
    )


def test_a_fault_of_a_text_of_several_items_names_the_first_and_says_so() -> None:
    said = {"role": "assistant", "content": "a"}
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}]}
    names = asked(input=[user("x"), call(0)[0], said, thought, said, call(1)[0]]).names()
    told = names.body("chat.messages[1].content")
    assert told == "input[2].content (or a later one of its turn)"
    assert error_of(400, "", "", told)["param"] == "input[2].content"
    assert names.body("chat.messages[1].reasoning_content") == "input[3]"
    assert names.body("chat.messages[1].tool_calls[1].name") == "input[5].name"


class Counted(tuple[Place, ...]):
    """Counts how often one is looked at."""

    looks = 0

    def __getitem__(self, key: Any) -> Any:
        Counted.looks += 1
        return super().__getitem__(key)


def test_names_are_looked_for_among_the_items_of_one_message() -> None:
    """Of a very long conversation, of which a fault is told."""
    body = asked(input=[user("x")] * 10_000)
    names = ResponseNames(body.given, places=Counted(body.places))
    assert names.body("chat.messages[5000].content") == "input[5000].content"
    assert 0 < Counted.looks < 100
