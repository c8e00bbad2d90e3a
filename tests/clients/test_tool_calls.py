"""What the client library makes of thoughts and calls, and how it asks for them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.terminal_session import TerminalSession

from quire import Client, Delta, FinishReason, Message, OptionError, Tool, ToolCall
from quire.clients.prompts import build_request
from quire.v1 import inference_pb2 as pb

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clients.md"
TURNS = [Message("user", "call a b")]


def test_thoughts_and_calls_are_told_apart(server: Any) -> None:
    with Client(server.address) as client:
        (completion,) = client.generate(TURNS).completions()
        events = [event for event in client.generate(TURNS) if isinstance(event, Delta)]
        assert client.generate(TURNS).text() == "so"
    call = ToolCall("f", '{"w": "ab"}', "call_1")
    assert (completion.reasoning, completion.text) == ("hm, well", "so")
    assert completion.tool_calls == (call,)
    assert completion.finished.reason is FinishReason.TOOL_CALLS
    assert completion.finished.reasoning_tokens == 2
    begun, *more = [piece for event in events for piece in event.tool_calls]
    assert (begun.id, begun.name, begun.arguments) == ("call_1", "f", "")
    assert [piece.arguments for piece in more] == ['{"w": "', "a", "b", '"}']
    assert [event.reasoning for event in events][:2] == ["hm, ", "well"]
    turn = Message("assistant", completion.text, tool_calls=completion.tool_calls)
    sent = build_request([turn], {}).chat.messages[0].tool_calls[0]
    assert (sent.id, sent.name, sent.arguments_json) == ("call_1", "f", '{"w": "ab"}')


def test_what_is_asked_of_calls_arrives() -> None:
    tools = [Tool("f", strict=True), {"type": "function", "function": {"name": "g"}}]
    chat = build_request(TURNS, {"tools": tools, "parallel_tool_calls": False}).chat
    assert [tool.strict for tool in chat.tools] == [True, False]
    assert chat.HasField("parallel_tool_calls") and not chat.parallel_tool_calls
    assert build_request("x", {"parse_output": True}).parse_output
    for choice, expected in (
        ("auto", pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_AUTO)),
        ("none", pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_NONE)),
        ("required", pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED)),
        ("f", pb.ToolChoice(name="f")),
        ({"type": "function", "function": {"name": "f"}}, pb.ToolChoice(name="f")),
    ):
        assert build_request(TURNS, {"tool_choice": choice}).chat.tool_choice == expected
    for wrong in (3, {}, {"type": "other", "function": {"name": "f"}}):
        with pytest.raises(OptionError, match="tool_choice"):
            build_request(TURNS, {"tool_choice": wrong})


def test_a_chat_shows_thoughts_dimmed_and_what_is_called(server: Any) -> None:
    with TerminalSession("chat", "-a", server.address) as session:
        session.prompt()
        session.write("call a b\n")
        shown = session.wait_for('calls f {"w": "ab"}')
        assert "\x1b[2mhm, \x1b[0m\x1b[2mwell\x1b[0m" in shown
        assert "so" in shown.split("well")[1]
        session.prompt()
        session.write("say hi\n")
        session.prompt()
        session.write("/exit\n")
        assert session.exit_code() == 0
    contents = [message.content for message in server.seen.requests[-1].chat.messages]
    assert contents == ["call a b", "so", "say hi"]


def test_the_loop_of_the_page_answers_calls_until_there_are_none(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (loop,) = re.findall(r"```python\n(schema = .*?)```", PAGE.read_text(), re.DOTALL)
    asked = []

    def answer(name: str, arguments: dict[str, Any]) -> str:
        asked.append((name, arguments))
        return "say done"

    with Client(server.address) as client:
        names = {"client": client, "json": json, "run": answer, "Message": Message, "Tool": Tool}
        exec(loop.replace("How is the weather in Rome?", "call a b"), names)
    assert asked == [("f", {"w": "ab"})]
    assert capsys.readouterr().out == "done\n"
    assert server.seen.requests[-1].chat.messages[-1].tool_call_id == "call_1"
