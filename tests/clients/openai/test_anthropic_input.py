"""Anthropic's messages: they become a chat's messages, and a message's faults are theirs."""

import random
from typing import Any

import pytest

from quire.clients.openai import anthropic_body, chat
from quire.clients.openai.anthropic_body import MessagesBody
from quire.v1 import inference_pb2 as pb


def asked(*messages: Any, **fields: Any) -> MessagesBody:
    return anthropic_body.read({"max_tokens": 5, "messages": list(messages), **fields})


def conversation(*messages: Any, **fields: Any) -> pb.Chat:
    return asked(*messages, **fields).requests[0].chat


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said, "cache_control": {"type": "ephemeral"}}


def thought(said: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": said, "signature": "EqQB"}


def call(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A call as a block, and in a chat."""
    block = {"type": "tool_use", "id": f"c{number}", "name": "f", "input": {"a": number}}
    function = {"name": "f", "arguments": f'{{"a": {number}}}'}
    return block, {"id": f"c{number}", "type": "function", "function": function}


def invented(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The same conversation as Anthropic's messages and as a chat's. It ends with the user."""
    draw = random.Random(seed)
    theirs: list[dict[str, Any]] = []
    chats: list[dict[str, Any]] = []
    results: list[Any] = []
    for turn in range(draw.randrange(1, 6)):
        said = f"Hello {turn}"
        blocks = [*results, text(said[:3]), text(said[3:])]
        theirs.append(
            {"role": "user", "content": blocks if results or draw.random() < 0.5 else said}
        )
        chats.append({"role": "user", "content": said})
        if draw.random() < 0.2:
            theirs.append({"role": "system", "content": [text("Be nice.")]})
            chats.append({"role": "system", "content": "Be nice."})
        message, blocks = _turn(draw, turn)
        theirs.append({"role": "assistant", "content": blocks})
        chats.append(message)
        results = []
        for made in message.get("tool_calls", ()):
            output = f"It is {made['id']}"
            content = [text(output)] if draw.random() < 0.5 else output
            result = {"type": "tool_result", "tool_use_id": made["id"], "content": content}
            results.append(result)
            chats.append({"role": "tool", "tool_call_id": made["id"], "content": output})
    theirs.append({"role": "user", "content": [*results, text("End")]})
    return theirs, [*chats, {"role": "user", "content": "End"}]


def _turn(draw: random.Random, turn: int) -> tuple[dict[str, Any], list[Any]]:
    message: dict[str, Any] = {"role": "assistant", "content": f"So {turn}"}
    blocks: list[Any] = [text(message["content"])]
    if draw.random() < 0.5:
        message["reasoning"] = "Hm"
        blocks.insert(0, thought("Hm"))
    made = [call(10 * turn + i) for i in range(draw.randrange(3))]
    if made:
        message["tool_calls"] = [in_chat for _, in_chat in made]
    return message, blocks + [block for block, _ in made]


@pytest.mark.parametrize("block", range(10))
def test_a_conversation_of_blocks_is_the_same_chat(block: int) -> None:
    for seed in range(30 * block, 30 * block + 30):
        theirs, chats = invented(seed)
        expected = chat.read({"messages": chats}).requests[0].chat
        expected.omit_unshown_reasoning = any(turn.reasoning_content for turn in expected.messages)
        assert conversation(*theirs) == expected


def test_the_system_text_comes_first() -> None:
    user = {"role": "user", "content": "x"}
    for system in ("Be nice.", [text("Be "), text("nice.")]):
        told = [(m.role, m.content) for m in conversation(user, system=system).messages]
        assert told == [("system", "Be nice."), ("user", "x")]
    assert conversation(user, system="") == conversation(user, system=[]) == conversation(user)


def test_a_last_message_of_the_assistants_is_continued() -> None:
    user, begun = {"role": "user", "content": "x"}, {"role": "assistant", "content": "So"}
    told = conversation(user, begun)
    chats = {"messages": [user, begun], "continue_final_message": True}
    assert told == chat.read(chats).requests[0].chat
    assert not conversation(user, begun, user).continue_final_message
    body = asked(user, begun)
    assert body.names().body("chat.continue_final_message") == "messages[1]"


def test_a_tools_failure_is_shown_to_the_model() -> None:
    block, _ = call(0)
    result = {"type": "tool_result", "tool_use_id": "c0", "content": "No such file"}
    told = [
        conversation({"role": "assistant", "content": [block]}, {"role": "user", "content": [one]})
        .messages[-1]
        .content
        for one in (result, {**result, "is_error": False}, {**result, "is_error": True})
    ]
    assert told == ["No such file", "No such file", "Error: No such file"]
    silent = {"type": "tool_result", "tool_use_id": "c0"}
    assert conversation({"role": "user", "content": [silent]}).messages[0].content == ""


def test_thoughts_without_text_say_nothing() -> None:
    empty = {"role": "assistant", "content": [thought(""), text("So")]}
    assert conversation(empty) == conversation({"role": "assistant", "content": "So"})


def test_faults_of_the_contract_have_the_names_of_blocks() -> None:
    results = [{"type": "tool_result", "tool_use_id": f"c{i}", "content": "o"} for i in range(2)]
    body = asked(
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [text("a"), thought("t"), call(0)[0], call(1)[0]]},
        {"role": "user", "content": [*results, text("y")]},
        system="s",
        stop_sequences=["z"],
        metadata={"user_id": "u"},
        thinking={"type": "disabled"},
        output_config={"format": {"type": "json_schema", "schema": {}}, "effort": "low"},
    )
    names = body.names()
    expected = {
        "chat": "messages",
        "chat.messages": "messages",
        "chat.messages[0].content": "system",
        "chat.messages[1].content": "messages[0].content",
        "chat.messages[2].content": "messages[1].content",
        "chat.messages[2].reasoning_content": "messages[1].content[1].thinking",
        "chat.messages[2].tool_calls": "messages[1].content[2]",
        "chat.messages[2].tool_calls[1].arguments_json": "messages[1].content[3].input",
        "chat.messages[2].tool_calls[1].name": "messages[1].content[3].name",
        "chat.messages[4].content": "messages[2].content[1].content",
        "chat.messages[4].tool_call_id": "messages[2].content[1].tool_use_id",
        "chat.messages[4]": "messages[2].content[1]",
        "chat.messages[5].content": "messages[2].content",
        "chat.tools[1].parameters_json": "tools[1].input_schema",
        "chat.tools[0].name": "tools[0].name",
        "chat.tool_choice.name": "tool_choice.name",
        "chat.parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
        "sampling.max_tokens": "max_tokens",
        "sampling.stop[0]": "stop_sequences[0]",
        "user": "metadata.user_id",
        "chat.chat_template_kwargs.enable_thinking": "thinking",
        "chat.chat_template_kwargs.reasoning_effort": "output_config.effort",
        "constraint.json_schema": "output_config.format.schema",
        "request_id": "x-request-id",
    }
    assert {contract: names.body(contract) for contract in expected} == expected
